# set-key.awk sets one key of a configuration in YAML, and keeps everything else of the file, comments included.
#   SECTION=broker KEY=host VALUE='"broker.lan"' awk -f set-key.awk agent.yaml > new.yaml
# SECTION is empty for a key of the top level. VALUE is written as it is. The file has one key a line, as the configuration
# that comes with botwatch; a section may also be in braces, on one line. A file of another form is not edited: the exit
# status is 3 then, and the output is the reason.

function width(line) { match(line, /^ */); return RLENGTH }
function empty(line) { return line ~ /^[ \t\r]*(#.*)?$/ }
function names(line, key) { return line ~ ("^ *(" key "|\"" key "\"|'" key "')[ \t]*:([ \t\r]|$)") }
function cannot(reason) { print reason; exit 3 }

# Where the comment behind a value begins, 0 without one: "#" after a space, not in quotes.
function comment(line,    i, c, quote, last) {
    last = " "
    for (i = 1; i <= length(line); i++) {
        c = substr(line, i, 1)
        if (quote != "") { if (c == quote) quote = ""; else if (c == "\\" && quote == "\"") i++ }
        else if ((c == "\"" || c == "'") && last ~ /[ \t[{,:]/) quote = c
        else if (c == "#" && last ~ /[ \t]/) return i
        last = c
    }
    return 0
}

# The entries of a section in braces, without the braces, with the new value; "" if the text is not one whole section.
function edited(inside, key,    i, c, quote, last, depth, from, entry, name, seen, result) {
    last = " "; from = 1; inside = inside ","
    for (i = 1; i <= length(inside); i++) {
        c = substr(inside, i, 1)
        if (quote != "") { if (c == quote) quote = ""; else if (c == "\\" && quote == "\"") i++ }
        else if ((c == "\"" || c == "'") && last ~ /[ \t[{,:]/) quote = c
        else if (c ~ /[[{]/) depth++
        else if (c ~ /[]}]/ && --depth < 0) return ""
        else if (c == "," && !depth) {
            entry = substr(inside, from, i - from)
            from = i + 1
            name = entry
            sub(/^[ \t]*/, "", name); sub(/[ \t]*:.*/, "", name)
            if (name == key || name == "\"" key "\"" || name == "'" key "'") {
                sub(/:.*/, ": " ENVIRON["VALUE"], entry)
                seen = 1
            }
            if (entry ~ /[^ \t]/) result = result (result != "" ? "," : "") entry
        }
        last = c
    }
    if (quote != "" || depth) return ""
    return result (seen ? "" : ", " key ": " ENVIRON["VALUE"])
}

# Write line i with the new value, and drop the other lines of the old one.
function replace(i,    line, at, head, tail, indent, cr) {
    line = text[i]
    cr = sub(/\r$/, "", line) ? "\r" : ""
    at = comment(line)
    tail = at ? substr(line, at) : ""
    head = line
    sub(/:.*/, ": " ENVIRON["VALUE"], head)
    if (at) for (head = head "  "; length(head) < at - 1;) head = head " "
    text[i] = head tail cr
    indent = width(line)
    for (i++; i <= count; i++) {
        if (empty(text[i])) continue
        if (width(text[i]) > indent || text[i] ~ /^ *(- |-\r?$|[]}])/ && width(text[i]) == indent) drop[i] = 1
        else break
    }
}

{ text[++count] = $0 }

END {
    key = ENVIRON["KEY"]; section = ENVIRON["SECTION"]
    if (sub(/^\357\273\277/, "", text[1])) bom = "\357\273\277"
    from = 1; to = count; indent = 0
    for (i = 1; i <= count; i++) {
        if (text[i] ~ /^(\{|%|\t|\.\.\.)/) cannot("line " i " is not a key of its own")
    }
    if (section != "") {
        for (i = 1; i <= to; i++)
            if (names(text[i], section) && width(text[i]) == 0) {
                if (at) cannot("line " i ": the section " section " is there twice")
                at = i
            }
        if (!at) {
            while (count && empty(text[count]) && text[count] !~ /#/) count--
            if (count) text[++count] = ""
            text[++count] = section ":"
            text[++count] = "  " key ": " ENVIRON["VALUE"]
            done = 1
        } else {
            value = text[at]
            if (c = comment(value)) value = substr(value, 1, c - 1)
            sub(/^[^:]*:[ \t]*/, "", value); sub(/[ \t\r]*$/, "", value)
            if (value ~ /^(\{[ \t]*\}|null|~)$/) {
                line = text[at]; sub(/:[ \t]*(\{[ \t]*\}|null|~)/, ":", line); text[at] = line
            } else if (value ~ /^\{.*\}$/ && (inside = edited(substr(value, 2, length(value) - 2), key)) != "") {
                line = text[at]
                tail = c ? " " substr(line, c) : (line ~ /\r$/ ? "\r" : "")
                sub(/:.*/, ":", line)
                text[at] = line " {" inside "}" tail
                seen = 1
            } else if (value != "") cannot("line " at ": give each key of the section " section " a line of its own")
            from = at + 1; indent = 2
            for (i = from; i <= to && (empty(text[i]) || width(text[i]) > 0); i++)
                if (!inner && !empty(text[i])) { indent = width(text[i]); inner = 1 }
            to = i - 1
        }
    }
    for (i = from; i <= to && !done; i++)
        if (!(i in drop) && names(text[i], key) && width(text[i]) == indent) { replace(i); seen = 1 }
    line = sprintf("%" indent "s", "") key ": " ENVIRON["VALUE"]
    if (count && text[1] ~ /\r$/) line = line "\r"
    for (i = 1; i <= count; i++) {
        if (!(i in drop)) print (i == 1 ? bom : "") text[i]
        if (!done && !seen && section != "" && i == at) print line
    }
    if (!done && !seen && section == "") print line
}
