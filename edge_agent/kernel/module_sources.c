/* The Python types Capture and Live: where frames come from. */
#include "module.h"

#include <string.h>

/* ---- Capture ---- */

static PyObject *capture_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "bpf", NULL};
    PyObject *path = NULL;
    const char *bpf = NULL;
    char reason[CAPTURE_ERROR];

    struct module_state *state = PyType_GetModuleState(type);
    if (state == NULL)
        return NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|z", names, PyUnicode_FSConverter, &path, &bpf))
        return NULL;
    CaptureObject *self = (CaptureObject *)PyType_GenericAlloc(type, 0);
    PyObject *name = PyUnicode_DecodeFSDefault(PyBytes_AsString(path));
    if (self == NULL || name == NULL)
        goto failed;
    struct capture *capture;
    const char *bytes = PyBytes_AsString(path);
    Py_BEGIN_ALLOW_THREADS
    capture = capture_open_file(bytes, bpf, reason);
    Py_END_ALLOW_THREADS
    if (capture == NULL) {
        PyErr_Format(state->capture_error, "%U: %s", name, reason);
        goto failed;
    }
    self->capture = capture;
    self->name = name;
    self->error = Py_NewRef(state->capture_error);
    Py_DECREF(path);
    return (PyObject *)self;

failed:
    Py_XDECREF(path);
    Py_XDECREF(name);
    Py_XDECREF((PyObject *)self);
    return NULL;
}

static void capture_dealloc(PyObject *object)
{
    CaptureObject *self = (CaptureObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    capture_close(self->capture);
    Py_XDECREF(self->name);
    Py_XDECREF(self->error);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyObject *capture_py_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    CaptureObject *self = (CaptureObject *)object;
    if (self->busy)
        return PyErr_Format(PyExc_RuntimeError, "%U is being read by another thread", self->name);
    capture_close(self->capture);
    self->capture = NULL;
    Py_RETURN_NONE;
}

static PyObject *capture_get_linktype(PyObject *object, void *unused)
{
    (void)unused;
    CaptureObject *self = (CaptureObject *)object;
    if (self->capture == NULL)
        return PyErr_Format(PyExc_ValueError, "%U is closed", self->name);
    return PyLong_FromLong(capture_linktype(self->capture));
}

static PyObject *capture_get_name(PyObject *object, void *unused)
{
    (void)unused;
    return Py_NewRef(((CaptureObject *)object)->name);
}

static PyMethodDef capture_methods[] = {
    {"close", capture_py_close, METH_NOARGS, "Close the file; doing so twice is fine."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef capture_getset[] = {
    {"linktype", capture_get_linktype, NULL, "libpcap's number of the link layer.", NULL},
    {"name", capture_get_name, NULL, "The path it was opened with.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot capture_slots[] = {
    {Py_tp_doc, "Capture(path, bpf=None): an open pcap or pcapng file."},
    {Py_tp_new, (void *)capture_new},
    {Py_tp_dealloc, (void *)capture_dealloc},
    {Py_tp_methods, capture_methods},
    {Py_tp_getset, capture_getset},
    {0, NULL},
};

PyType_Spec capture_spec = {
    .name = "edge_agent._kernel.Capture",
    .basicsize = sizeof(CaptureObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = capture_slots,
};

/* ---- Live ---- */

static PyObject *live_py_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *names;
    struct live_settings settings;
    int promiscuous, inbound, once;
    const char *texts[INTERFACES_MAX];
    char reason[CAPTURE_ERROR];

    struct module_state *state = PyType_GetModuleState(type);
    if (state == NULL || (kwargs != NULL && PyDict_Size(kwargs) != 0) ||
        !PyArg_ParseTuple(args, "O!ziippp", &PyTuple_Type, &names, &settings.bpf, &settings.snaplen, &settings.buffer,
                          &promiscuous, &inbound, &once))
        return NULL;
    settings.promiscuous = promiscuous != 0;
    settings.inbound = inbound != 0;
    settings.once = once != 0;
    Py_ssize_t count = PyTuple_Size(names);
    if (count < 1 || count > INTERFACES_MAX)
        return PyErr_Format(PyExc_ValueError, "%zd interfaces, 1 to %d are possible", count, INTERFACES_MAX);
    for (Py_ssize_t i = 0; i < count; i++)
        if ((texts[i] = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(names, i), NULL)) == NULL)
            return NULL;
    if (settings.bpf != NULL && !capture_filter_possible(settings.bpf, reason))
        return PyErr_Format(state->capture_error, "%s", reason);
    LiveObject *self = (LiveObject *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->names = Py_NewRef(names);
    self->error = Py_NewRef(state->capture_error);
    self->forbidden = Py_NewRef(state->forbidden);
    self->live = live_new(texts, (size_t)count, &settings);
    if (self->live != NULL)
        return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return PyErr_NoMemory();
}

static void live_dealloc(PyObject *object)
{
    LiveObject *self = (LiveObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    live_free(self->live);
    Py_XDECREF(self->names);
    Py_XDECREF(self->error);
    Py_XDECREF(self->forbidden);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

struct live *idle_live(PyObject *object)
{
    LiveObject *self = (LiveObject *)object;
    if (!self->busy)
        return self->live;
    PyErr_Format(PyExc_RuntimeError, "%S are being read by another thread", self->names);
    return NULL;
}

/* The interfaces and the number of one of them, or NULL with an exception. */
static struct live *one_live(PyObject *object, PyObject *args, int *i)
{
    struct live *live = idle_live(object);
    if (live == NULL || !PyArg_ParseTuple(args, "i", i))
        return NULL;
    if (*i >= 0 && (size_t)*i < live_count(live))
        return live;
    PyErr_Format(PyExc_IndexError, "no interface %d", *i);
    return NULL;
}

static PyObject *live_py_open(PyObject *object, PyObject *args)
{
    LiveObject *self = (LiveObject *)object;
    int i;
    enum open_result result;
    char reason[CAPTURE_ERROR];
    struct live *live = one_live(object, args, &i);
    if (live == NULL)
        return NULL;
    self->busy = true;
    Py_BEGIN_ALLOW_THREADS
    result = live_open(live, (size_t)i, reason);
    Py_END_ALLOW_THREADS
    self->busy = false;
    if (result != OPEN_DONE)
        return PyErr_Format(result == OPEN_FORBIDDEN ? self->forbidden : self->error, "%U: %s",
                            PyTuple_GetItem(self->names, i), reason);
    return PyLong_FromLong(live_linktype(live, (size_t)i));
}

static PyObject *live_py_shut(PyObject *object, PyObject *args)
{
    int i;
    struct live *live = one_live(object, args, &i);
    if (live == NULL)
        return NULL;
    live_shut(live, (size_t)i);
    Py_RETURN_NONE;
}

static PyObject *live_py_fileno(PyObject *object, PyObject *args)
{
    int i;
    struct live *live = one_live(object, args, &i);
    return live != NULL ? PyLong_FromLong(live_fd(live, (size_t)i)) : NULL;
}

static PyObject *live_py_lost(PyObject *object, PyObject *args)
{
    int i;
    struct live *live = one_live(object, args, &i);
    if (live == NULL)
        return NULL;
    return Py_BuildValue("z", live_lost(live, (size_t)i));
}

static PyObject *live_py_held(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct live *live = idle_live(object);
    return live != NULL ? PyBool_FromLong(live_held(live)) : NULL;
}

static PyObject *live_py_own(PyObject *object, PyObject *args)
{
    const char *bytes;
    Py_ssize_t size;
    struct live *live = idle_live(object);
    if (live == NULL || !PyArg_ParseTuple(args, "y#", &bytes, &size))
        return NULL;
    uint64_t macs[64];
    size_t count = (size_t)size / sizeof *macs;
    count = count < 64 ? count : 64;
    memcpy(macs, bytes, count * sizeof *macs);
    live_own(live, macs, count);
    Py_RETURN_NONE;
}

static PyObject *live_py_statistics(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct live *live = idle_live(object);
    if (live == NULL)
        return NULL;
    struct live_stats s = live_statistics(live);
    return Py_BuildValue("(KKKKK)", s.received, s.dropped, s.interface_dropped, s.again, s.forgotten);
}

static PyObject *live_py_record(PyObject *object, PyObject *args)
{
    int file;
    struct live *live = idle_live(object);
    if (live == NULL || !PyArg_ParseTuple(args, "i", &file))
        return NULL;
    live_record(live, file);
    Py_RETURN_NONE;
}

static PyObject *live_py_flush(PyObject *object, PyObject *unused)
{
    (void)unused;
    LiveObject *self = (LiveObject *)object;
    int failed;
    struct live *live = idle_live(object);
    if (live == NULL)
        return NULL;
    self->busy = true;
    Py_BEGIN_ALLOW_THREADS
    failed = live_flush(live);
    Py_END_ALLOW_THREADS
    self->busy = false;
    return PyLong_FromLong(failed);
}

static PyMethodDef live_methods[] = {
    {"open", live_py_open, METH_VARARGS, "open(i) -> link type: open, or open again, interface number i."},
    {"shut", live_py_shut, METH_VARARGS, "shut(i): close it; doing so twice is fine."},
    {"fileno", live_py_fileno, METH_VARARGS, "fileno(i): what to poll; -1 when it is not open."},
    {"lost", live_py_lost, METH_VARARGS, "lost(i): why it was lost since this was last asked, or None."},
    {"held", live_py_held, METH_NOARGS, "Whether a frame waits for older ones of other interfaces: then poll is of no use."},
    {"own", live_py_own, METH_VARARGS, "own(macs): this machine's, as uint64."},
    {"statistics", live_py_statistics, METH_NOARGS,
     "(received, dropped, dropped by the interfaces, left out as seen before, forgotten while wanted for that)."},
    {"record", live_py_record, METH_VARARGS, "record(fd): write further frames there; -1: no more."},
    {"flush", live_py_flush, METH_NOARGS, "Write what `record` still holds; 0 or the errno that stopped it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot live_slots[] = {
    {Py_tp_doc, "Live(names, bpf, snaplen, buffer, promiscuous, inbound, once): interfaces read as one, none open yet."},
    {Py_tp_new, (void *)live_py_new},
    {Py_tp_dealloc, (void *)live_dealloc},
    {Py_tp_methods, live_methods},
    {0, NULL},
};

PyType_Spec live_spec = {
    .name = "edge_agent._kernel.Live",
    .basicsize = sizeof(LiveObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = live_slots,
};
