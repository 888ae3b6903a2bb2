# bash completion of botwatch, made by `python -m tests.completion`; `botwatch completion bash` prints it.

# Sets $words to the options of a command; fails if there is no such command.
_botwatch_node() {
    case $1${2+ $2} in
        '') words='--help --version' ;;
        ' agent') words='--help --version' ;;
        ' agent run') words='--broker --bundle --config --gateway --help --interface --no-broker --outbox --record --seed' ;;
        ' agent check') words='--broker --bundle --config --gateway --help --interface --json --outbox' ;;
        ' agent replay') words='--broker --bundle --config --evidence --gateway --help --json --outbox --utc --wait' ;;
        ' agent evidence') words='--bundle --config --gateway --help --json --out --outbox --utc' ;;
        ' agent rows') words='--config --help --out --outbox' ;;
        ' agent test-alert') words='--broker --bundle --config --gateway --help --json --outbox --wait' ;;
        ' agent support') words='--bundle --config --gateway --help --out --outbox' ;;
        ' agent status') words='--config --help --json --outbox --utc' ;;
        ' agent allow') words='--class --config --device --for --help --host --json --kind --learn --outbox --port --reason --replace --utc' ;;
        ' agent unallow') words='--config --help --json --outbox --utc' ;;
        ' agent mute') words='--config --for --help --json --outbox --reason --replace --utc' ;;
        ' agent unmute') words='--config --help --json --outbox --utc' ;;
        ' agent learn') words='--config --help --json --outbox --utc' ;;
        ' trainer') words='--help --version' ;;
        ' trainer extract') words='--help --max-streams --out --schema' ;;
        ' trainer fit') words='--checkpoints --data --help --out --store --tensorboard --top-n --worker --workers' ;;
        ' trainer stream') words='--every --generated --help --out --seed' ;;
        ' trainer fetch') words='--config --from --help --out' ;;
        ' trainer compare') words='--by --captures --config --epochs --help --out --root --seeds' ;;
        ' trainer explain') words='--help' ;;
        ' trainer baselines') words='--bundle --help' ;;
        ' trainer audit') words='--help' ;;
        ' trainer report') words='--help --no-compute --out' ;;
        ' trainer evaluate') words='--base-rate --config --earlier --evasions --floor --help --json --learn --out --root --run' ;;
        ' trainer base') words='--config --help --out --run' ;;
        ' trainer generate') words='--attack-seconds --attacks --days --devices --help --home --homes --hours --infected --lead-minutes --max-attack-packets --out --seed --snaplen --start --tail-minutes --varied' ;;
        ' trainer study') words='--data --float --help --out --partial --top-n' ;;
        ' trainer sweep') words='--activations --data --help --optimisers --out --over --steps' ;;
        ' converter') words='--bundle-version --help --out --variant --version' ;;
        ' collector') words='--help --version' ;;
        ' collector serve') words='--broker --config --db --help' ;;
        ' collector alerts') words='--after --class --config --db --device --events --follow --gateway --help --json --last --open --severity --since --utc' ;;
        ' collector gateways') words='--config --db --follow --help --json --site --utc' ;;
        ' collector command') words='--all --broker --config --db --help --json --out --site --timeout --utc' ;;
        ' completion') words='--help --version' ;;
        ' demo') words='--captures --help --out --root --version' ;;
        *) return 1 ;;
    esac
}

# Sets $kind to what the value of an option is; fails if it has none.
_botwatch_option() {
    case $1${2+ $2} in
        ' agent run --bundle') kind='dir' ;;
        ' agent run --config') kind='file' ;;
        ' agent run --gateway') kind='' ;;
        ' agent run --outbox') kind='file' ;;
        ' agent run --broker') kind='' ;;
        ' agent run --record') kind='file' ;;
        ' agent run --seed') kind='' ;;
        ' agent run --interface') kind='interface' ;;
        ' agent check --bundle') kind='dir' ;;
        ' agent check --config') kind='file' ;;
        ' agent check --gateway') kind='' ;;
        ' agent check --outbox') kind='file' ;;
        ' agent check --broker') kind='' ;;
        ' agent check --interface') kind='interface' ;;
        ' agent replay --bundle') kind='dir' ;;
        ' agent replay --config') kind='file' ;;
        ' agent replay --gateway') kind='' ;;
        ' agent replay --outbox') kind='file' ;;
        ' agent replay --broker') kind='' ;;
        ' agent replay --wait') kind='' ;;
        ' agent replay --evidence') kind='dir' ;;
        ' agent evidence --bundle') kind='dir' ;;
        ' agent evidence --config') kind='file' ;;
        ' agent evidence --gateway') kind='' ;;
        ' agent evidence --outbox') kind='file' ;;
        ' agent evidence --out') kind='file' ;;
        ' agent rows --config') kind='file' ;;
        ' agent rows --outbox') kind='file' ;;
        ' agent rows --out') kind='file' ;;
        ' agent test-alert --bundle') kind='dir' ;;
        ' agent test-alert --config') kind='file' ;;
        ' agent test-alert --gateway') kind='' ;;
        ' agent test-alert --outbox') kind='file' ;;
        ' agent test-alert --broker') kind='' ;;
        ' agent test-alert --wait') kind='' ;;
        ' agent support --bundle') kind='dir' ;;
        ' agent support --config') kind='file' ;;
        ' agent support --gateway') kind='' ;;
        ' agent support --outbox') kind='file' ;;
        ' agent support --out') kind='file' ;;
        ' agent status --config') kind='file' ;;
        ' agent status --outbox') kind='file' ;;
        ' agent allow --config') kind='file' ;;
        ' agent allow --outbox') kind='file' ;;
        ' agent allow --device') kind='' ;;
        ' agent allow --kind') kind='flood scan check-in other' ;;
        ' agent allow --class') kind='anomaly unknown mirai mirai.scan mirai.syn mirai.ack mirai.udp mirai.udpplain gafgyt gafgyt.scan gafgyt.tcp gafgyt.junk gafgyt.udp gafgyt.combo gafgyt.tcp_udp' ;;
        ' agent allow --host') kind='' ;;
        ' agent allow --port') kind='' ;;
        ' agent allow --reason') kind='' ;;
        ' agent allow --for') kind='' ;;
        ' agent unallow --config') kind='file' ;;
        ' agent unallow --outbox') kind='file' ;;
        ' agent mute --config') kind='file' ;;
        ' agent mute --outbox') kind='file' ;;
        ' agent mute --for') kind='' ;;
        ' agent mute --reason') kind='' ;;
        ' agent unmute --config') kind='file' ;;
        ' agent unmute --outbox') kind='file' ;;
        ' agent learn --config') kind='file' ;;
        ' agent learn --outbox') kind='file' ;;
        ' trainer extract --out') kind='file' ;;
        ' trainer extract --schema') kind='clean compat' ;;
        ' trainer extract --max-streams') kind='' ;;
        ' trainer fit --out') kind='dir' ;;
        ' trainer fit --top-n') kind='' ;;
        ' trainer fit --data') kind='file' ;;
        ' trainer fit --tensorboard') kind='dir' ;;
        ' trainer fit --checkpoints') kind='dir' ;;
        ' trainer fit --store') kind='dir' ;;
        ' trainer fit --workers') kind='' ;;
        ' trainer fit --worker') kind='' ;;
        ' trainer stream --out') kind='dir' ;;
        ' trainer stream --seed') kind='' ;;
        ' trainer stream --every') kind='' ;;
        ' trainer fetch --out') kind='dir' ;;
        ' trainer fetch --config') kind='file' ;;
        ' trainer fetch --from') kind='' ;;
        ' trainer compare --by') kind='chrono rotate lodo lofo cross columns models' ;;
        ' trainer compare --captures') kind='file' ;;
        ' trainer compare --root') kind='dir' ;;
        ' trainer compare --out') kind='dir' ;;
        ' trainer compare --config') kind='file' ;;
        ' trainer compare --seeds') kind='' ;;
        ' trainer compare --epochs') kind='' ;;
        ' trainer baselines --bundle') kind='dir' ;;
        ' trainer report --out') kind='file' ;;
        ' trainer evaluate --root') kind='dir' ;;
        ' trainer evaluate --out') kind='dir' ;;
        ' trainer evaluate --run') kind='dir' ;;
        ' trainer evaluate --config') kind='file' ;;
        ' trainer evaluate --earlier') kind='file' ;;
        ' trainer evaluate --json') kind='file' ;;
        ' trainer evaluate --base-rate') kind='' ;;
        ' trainer base --out') kind='dir' ;;
        ' trainer base --config') kind='file' ;;
        ' trainer base --run') kind='dir' ;;
        ' trainer generate --out') kind='dir' ;;
        ' trainer generate --seed') kind='' ;;
        ' trainer generate --homes') kind='' ;;
        ' trainer generate --home') kind='' ;;
        ' trainer generate --start') kind='' ;;
        ' trainer generate --days') kind='' ;;
        ' trainer generate --hours') kind='' ;;
        ' trainer generate --devices') kind='' ;;
        ' trainer generate --attacks') kind='' ;;
        ' trainer generate --infected') kind='' ;;
        ' trainer generate --attack-seconds') kind='' ;;
        ' trainer generate --lead-minutes') kind='' ;;
        ' trainer generate --tail-minutes') kind='' ;;
        ' trainer generate --max-attack-packets') kind='' ;;
        ' trainer generate --snaplen') kind='' ;;
        ' trainer study --data') kind='file' ;;
        ' trainer study --out') kind='dir' ;;
        ' trainer study --top-n') kind='' ;;
        ' trainer sweep --data') kind='file' ;;
        ' trainer sweep --out') kind='dir' ;;
        ' trainer sweep --over') kind='columns activation' ;;
        ' trainer sweep --steps') kind='' ;;
        ' trainer sweep --activations') kind='' ;;
        ' trainer sweep --optimisers') kind='' ;;
        ' converter --out') kind='dir' ;;
        ' converter --variant') kind='int8 float32 float16 dynamic' ;;
        ' converter --bundle-version') kind='' ;;
        ' collector serve --config') kind='file' ;;
        ' collector serve --db') kind='' ;;
        ' collector serve --broker') kind='' ;;
        ' collector alerts --config') kind='file' ;;
        ' collector alerts --db') kind='' ;;
        ' collector alerts --after') kind='' ;;
        ' collector alerts --last') kind='' ;;
        ' collector alerts --gateway') kind='' ;;
        ' collector alerts --device') kind='' ;;
        ' collector alerts --class') kind='anomaly unknown mirai mirai.scan mirai.syn mirai.ack mirai.udp mirai.udpplain gafgyt gafgyt.scan gafgyt.tcp gafgyt.junk gafgyt.udp gafgyt.combo gafgyt.tcp_udp' ;;
        ' collector alerts --severity') kind='1 2 3' ;;
        ' collector alerts --since') kind='' ;;
        ' collector gateways --config') kind='file' ;;
        ' collector gateways --db') kind='' ;;
        ' collector gateways --site') kind='' ;;
        ' collector command --config') kind='file' ;;
        ' collector command --db') kind='' ;;
        ' collector command --site') kind='' ;;
        ' collector command --broker') kind='' ;;
        ' collector command --timeout') kind='' ;;
        ' collector command --out') kind='file' ;;
        ' demo --out') kind='dir' ;;
        ' demo --captures') kind='dir' ;;
        ' demo --root') kind='dir' ;;
        *) return 1 ;;
    esac
}

# Sets $kind to what an argument without an option is, by its place.
_botwatch_place() {
    case $1${2+ $2} in
        ' 0') kind='agent trainer converter collector completion demo' ;;
        ' agent 0') kind='run check replay evidence rows test-alert support status allow unallow mute unmute learn' ;;
        ' agent replay '*) kind='file' ;;
        ' agent evidence 0') kind='' ;;
        ' agent allow 0') kind='' ;;
        ' agent unallow 0') kind='' ;;
        ' agent mute 0') kind='' ;;
        ' agent unmute 0') kind='' ;;
        ' agent learn 0') kind='' ;;
        ' trainer 0') kind='extract fit stream fetch compare explain baselines audit report evaluate base generate study sweep' ;;
        ' trainer extract '*) kind='file' ;;
        ' trainer fit 0') kind='file' ;;
        ' trainer stream '*) kind='file' ;;
        ' trainer compare 0') kind='file' ;;
        ' trainer explain 0') kind='dir' ;;
        ' trainer baselines 0') kind='dir' ;;
        ' trainer audit 0') kind='dir' ;;
        ' trainer report 0') kind='dir' ;;
        ' trainer evaluate 0') kind='dir' ;;
        ' trainer evaluate '*) kind='file' ;;
        ' trainer study 0') kind='file' ;;
        ' trainer sweep 0') kind='file' ;;
        ' converter 0') kind='dir' ;;
        ' collector 0') kind='serve alerts gateways command' ;;
        ' collector gateways '*) kind='' ;;
        ' collector command 0') kind='' ;;
        ' collector command 1') kind='status allow unallow mute unmute learn replay evidence test-alert' ;;
        ' collector command '*) kind='pair' ;;
        ' completion 0') kind='bash' ;;
        *) return 1 ;;
    esac
}

# Sets $kind to the keys of a command to a gateway; fails if there is none.
_botwatch_keys() {
    case $1${2+ $2} in
        'status') kind='' ;;
        'allow') kind='alert= device= kind= classes= host= port= reason= for= learn= replace=' ;;
        'unallow') kind='entry=' ;;
        'mute') kind='alert= device= for= reason= replace=' ;;
        'unmute') kind='entry= device=' ;;
        'learn') kind='device=' ;;
        'replay') kind='since=' ;;
        'evidence') kind='alert=' ;;
        'test-alert') kind='' ;;
        *) return 1 ;;
    esac
}

# Completes as $kind says: nothing, the names of files, folders or interfaces, the keys of the command $verb, or words.
_botwatch_complete() {
    case $kind in
        '') COMPREPLY=() ;;
        file) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); compopt -o filenames 2> /dev/null ;;
        dir) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); compopt -o filenames 2> /dev/null ;;
        interface) mapfile -t COMPREPLY < <(cd /sys/class/net 2> /dev/null && compgen -f -- "$cur") ;;
        pair)
            _botwatch_keys "$verb"
            mapfile -t COMPREPLY < <(compgen -W "$kind" -- "$cur")
            compopt -o nospace 2> /dev/null ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$kind" -- "$cur") ;;
    esac
}

_botwatch() {
    local cur=${COMP_WORDS[COMP_CWORD]} path='' verb='' kind='' words='' option='' word i=0 place=0
    local last=${COMP_WORDS[COMP_CWORD - 1]}
    while ((++i < COMP_CWORD)); do
        word=${COMP_WORDS[i]}
        if [[ $word == [:=] ]]; then  # bash takes a word apart here: what follows belongs to what came before
            ((i + 1 < COMP_CWORD)) && ((++i))
            [[ $word == '=' && $i -lt $COMP_CWORD && ${COMP_WORDS[i]} != '=' ]] && option=''
        elif [[ $option ]]; then
            option=''
        elif [[ $word == -* ]]; then
            _botwatch_option "$path" "$word" && option=$word
        elif _botwatch_node "$path $word"; then
            path="$path $word" place=0
        else
            _botwatch_keys "$word" && verb=$word
            ((++place))
        fi
    done
    if [[ $cur == [:=] ]]; then
        cur=''
    fi
    kind=''
    if [[ $option ]]; then
        _botwatch_option "$path" "$option"
    elif [[ $cur == -* ]]; then
        _botwatch_node "$path"
        kind=$words
    elif [[ ${COMP_WORDS[COMP_CWORD]} != [:=] && $last != [:=] ]]; then
        _botwatch_place "$path" "$place"
    fi
    _botwatch_complete
}

complete -F _botwatch botwatch
