/* The Python face of the kernel: the types Capture, Kernel, Senders and Scaling, and the layout of a row.
 * edge_agent/capture/sources.py and features.py are its only users; arguments are checked here as far as memory safety needs, meanings are
 * explained there.
 *
 * Frames are taken without the GIL. A Capture or Kernel in use by one thread refuses another (RuntimeError): `busy` is
 * only touched while holding the GIL. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernel.h"

#include <string.h>

struct module_state {
    PyTypeObject *capture_type, *live_type;
    PyObject *capture_error;
};

/* ---- Capture ---- */

typedef struct {
    PyObject_HEAD
    struct capture *capture; /* NULL when closed */
    PyObject *name;
    PyObject *error;         /* the CaptureError type */
    bool busy;
} CaptureObject;

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

static PyType_Spec capture_spec = {
    .name = "edge_agent._kernel.Capture",
    .basicsize = sizeof(CaptureObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = capture_slots,
};

/* ---- Live ---- */

typedef struct {
    PyObject_HEAD
    struct live *live;
    PyObject *names; /* tuple of str */
    PyObject *error; /* the CaptureError type */
    bool busy;
} LiveObject;

static PyObject *live_py_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *names;
    struct live_settings settings;
    int promiscuous, inbound, once;
    const char *texts[INTERFACES_MAX];

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
    LiveObject *self = (LiveObject *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->names = Py_NewRef(names);
    self->error = Py_NewRef(state->capture_error);
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
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* The interfaces, or NULL with an exception. */
static struct live *idle_live(PyObject *object)
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
    bool good;
    char reason[CAPTURE_ERROR];
    struct live *live = one_live(object, args, &i);
    if (live == NULL)
        return NULL;
    self->busy = true;
    Py_BEGIN_ALLOW_THREADS
    good = live_open(live, (size_t)i, reason);
    Py_END_ALLOW_THREADS
    self->busy = false;
    if (!good)
        return PyErr_Format(self->error, "%U: %s", PyTuple_GetItem(self->names, i), reason);
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

static PyType_Spec live_spec = {
    .name = "edge_agent._kernel.Live",
    .basicsize = sizeof(LiveObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = live_slots,
};

/* ---- Kernel ---- */

typedef struct {
    PyObject_HEAD
    struct kernel *kernel;
    bool busy;
} KernelObject;

static PyObject *kernel_py_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"max_streams", "max_devices", "compat", "float_time", "seed", "simd", NULL};
    unsigned int max_streams, max_devices;
    int compat, float_time;
    unsigned long long seed;
    const char *simd = "auto";
    struct settings settings;
    enum simd choice;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IIppK|s", names, &max_streams, &max_devices, &compat, &float_time,
                                     &seed, &simd))
        return NULL;
    if (max_streams < 16 || max_streams > 1048575)
        return PyErr_Format(PyExc_ValueError, "max_streams %u is not in 16 .. 1048575", max_streams);
    if (max_devices < 1 || max_devices > 1048575)
        return PyErr_Format(PyExc_ValueError, "max_devices %u is not in 1 .. 1048575", max_devices);
    if (strcmp(simd, "auto") == 0)
        choice = SIMD_AUTO;
    else if (strcmp(simd, "baseline") == 0)
        choice = SIMD_BASELINE;
    else if (strcmp(simd, "avx2") == 0)
        choice = SIMD_AVX2;
    else
        return PyErr_Format(PyExc_ValueError, "simd '%s' is not one of auto, baseline, avx2", simd);
    memset(&settings, 0, sizeof settings);
    settings.max_streams = max_streams;
    settings.max_devices = max_devices;
    settings.compat = compat != 0;
    settings.float_time = float_time != 0;
    settings.seed = seed;
    KernelObject *self = (KernelObject *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->kernel = kernel_new(&settings, choice);
    if (self->kernel == NULL) {
        Py_DECREF(self);
        if (choice == SIMD_AVX2)
            return PyErr_Format(PyExc_ValueError, "no memory, or this processor has no avx2");
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void kernel_py_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    kernel_free(((KernelObject *)object)->kernel);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static bool take(KernelObject *self)
{
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "this Kernel is in use by another thread");
        return false;
    }
    return true;
}

/* Writable, contiguous rows: float or double values of COLUMNS each, as many struct row_meta. */
static bool get_rows(PyObject *values, PyObject *meta, Py_buffer *value_view, Py_buffer *meta_view, struct rows *rows)
{
    if (PyObject_GetBuffer(values, value_view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0)
        return false;
    if (PyObject_GetBuffer(meta, meta_view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) != 0) {
        PyBuffer_Release(value_view);
        return false;
    }
    const char *format = value_view->format;
    bool doubles = format != NULL && strcmp(format, "d") == 0, floats = format != NULL && strcmp(format, "f") == 0;
    size_t limit = (size_t)meta_view->len / sizeof(struct row_meta), width = doubles ? sizeof(double) : sizeof(float);
    if ((!doubles && !floats) || (size_t)meta_view->len != limit * sizeof(struct row_meta) ||
        (size_t)value_view->len != limit * COLUMNS * width || limit == 0 || (uintptr_t)value_view->buf % width != 0 ||
        (uintptr_t)meta_view->buf % sizeof(uint64_t) != 0) {
        PyErr_SetString(PyExc_ValueError, "values must be (n, 140) float32 or float64 and meta (n,) ROW_META, n > 0");
        PyBuffer_Release(value_view);
        PyBuffer_Release(meta_view);
        return false;
    }
    rows->values = value_view->buf;
    rows->doubles = doubles;
    rows->meta = meta_view->buf;
    rows->limit = limit;
    return true;
}

static enum capture_result next_captured(void *context, struct frame *frame)
{
    return capture_next(context, frame);
}

static enum capture_result next_live(void *context, struct frame *frame)
{
    return live_next(context, frame);
}

static PyObject *kernel_py_push(PyObject *object, PyObject *args)
{
    KernelObject *self = (KernelObject *)object;
    PyObject *source_object, *values, *meta;
    Py_buffer value_view, meta_view;
    struct rows rows;
    struct source source;
    enum capture_result result;
    size_t made;
    bool *busy;

    struct module_state *state = PyType_GetModuleState(Py_TYPE(object));
    if (state == NULL || !PyArg_ParseTuple(args, "OOO", &source_object, &values, &meta))
        return NULL;
    if (Py_TYPE(source_object) == state->live_type) {
        struct live *live = idle_live(source_object);
        if (live == NULL)
            return NULL;
        source = (struct source){next_live, live};
        busy = &((LiveObject *)source_object)->busy;
    } else if (Py_TYPE(source_object) == state->capture_type) {
        CaptureObject *capture = (CaptureObject *)source_object;
        if (capture->capture == NULL)
            return PyErr_Format(PyExc_ValueError, "%U is closed", capture->name);
        if (capture->busy)
            return PyErr_Format(PyExc_RuntimeError, "%U is being read by another thread", capture->name);
        source = (struct source){next_captured, capture->capture};
        busy = &capture->busy;
    } else {
        return PyErr_Format(PyExc_TypeError, "neither a Capture nor a Live");
    }
    if (!take(self) || !get_rows(values, meta, &value_view, &meta_view, &rows))
        return NULL;
    self->busy = *busy = true;
    Py_BEGIN_ALLOW_THREADS
    made = kernel_push(self->kernel, source, &rows, &result);
    Py_END_ALLOW_THREADS
    self->busy = *busy = false;
    PyBuffer_Release(&value_view);
    PyBuffer_Release(&meta_view);
    if (made == 0 && result == CAPTURE_FAILED) { /* of a file only */
        CaptureObject *capture = (CaptureObject *)source_object;
        struct count counts[MAX_COUNTS];
        kernel_counts(self->kernel, counts);
        return PyErr_Format(capture->error, "%U: %s (after %llu frames and %llu rows)", capture->name,
                            capture_reason(capture->capture), (unsigned long long)counts[0].value,
                            (unsigned long long)counts[1].value);
    }
    return PyLong_FromSize_t(made);
}

/* Frames of a Python sequence, checked and pinned before the GIL is let go. */
struct handed {
    struct frame *frames;
    size_t at, count;
};

static enum capture_result next_handed(void *context, struct frame *frame)
{
    struct handed *handed = context;
    if (handed->at == handed->count)
        return CAPTURE_END;
    *frame = handed->frames[handed->at++];
    return CAPTURE_FRAME;
}

static bool read_frame(PyObject *item, int linktype, struct frame *frame)
{
    long long t_ns;
    long long wire_length;
    char *bytes;
    Py_ssize_t size;
    PyObject *data;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a frame is a tuple (t_ns, wire_length, bytes)");
        return false;
    }
    if (!PyArg_ParseTuple(item, "LLS", &t_ns, &wire_length, &data) || PyBytes_AsStringAndSize(data, &bytes, &size) != 0)
        return false;
    if (wire_length < 0 || wire_length > UINT32_MAX || size > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "a frame's length %lld on the wire or %zd captured is impossible", wire_length, size);
        return false;
    }
    const long long latest = 4611686018999999999; /* as in capture.c */
    frame->bad_time = t_ns < 0 || t_ns > latest;
    frame->t_ns = t_ns < 0 ? 0 : t_ns > latest ? latest : t_ns;
    frame->wire_length = (uint32_t)wire_length;
    frame->captured = (uint32_t)size;
    frame->bytes = (const uint8_t *)bytes;
    frame->interface = 0;
    frame->linktype = linktype;
    return true;
}

static PyObject *kernel_py_push_frames(PyObject *object, PyObject *args)
{
    KernelObject *self = (KernelObject *)object;
    PyObject *frames, *values, *meta;
    Py_buffer value_view, meta_view;
    struct rows rows;
    int linktype;
    enum capture_result result;
    char reason[CAPTURE_ERROR];
    size_t made;

    if (!PyArg_ParseTuple(args, "O!iOO", &PyTuple_Type, &frames, &linktype, &values, &meta))
        return NULL;
    if (!link_supported(linktype)) {
        capture_say_unsupported(linktype, reason);
        return PyErr_Format(PyExc_ValueError, "%s", reason);
    }
    if (!take(self))
        return NULL;
    Py_ssize_t count = PyTuple_Size(frames);
    struct handed handed = {NULL, 0, (size_t)count};
    handed.frames = PyMem_Calloc((size_t)count + 1, sizeof *handed.frames);
    if (handed.frames == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++)
        if (!read_frame(PyTuple_GetItem(frames, i), linktype, &handed.frames[i]))
            goto failed;
    if (!get_rows(values, meta, &value_view, &meta_view, &rows))
        goto failed;
    if (rows.limit < (size_t)count) {
        PyErr_SetString(PyExc_ValueError, "fewer rows than frames");
        PyBuffer_Release(&value_view);
        PyBuffer_Release(&meta_view);
        goto failed;
    }
    struct source source = {next_handed, &handed};
    self->busy = true;
    Py_BEGIN_ALLOW_THREADS
    made = kernel_push(self->kernel, source, &rows, &result);
    Py_END_ALLOW_THREADS
    self->busy = false;
    PyBuffer_Release(&value_view);
    PyBuffer_Release(&meta_view);
    PyMem_Free(handed.frames);
    return PyLong_FromSize_t(made);

failed:
    PyMem_Free(handed.frames);
    return NULL;
}

static PyObject *as_dict(const struct count *counts, size_t n)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && i < n; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(counts[i].value);
        if (value == NULL || PyDict_SetItemString(dict, counts[i].name, value) != 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *kernel_py_counts(PyObject *object, PyObject *unused)
{
    (void)unused;
    KernelObject *self = (KernelObject *)object;
    struct count counts[MAX_COUNTS];
    if (!take(self))
        return NULL;
    return as_dict(counts, kernel_counts(self->kernel, counts));
}

static PyObject *kernel_py_memory(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct count counts[MAX_COUNTS];
    return as_dict(counts, kernel_memory(((KernelObject *)object)->kernel, counts));
}

static PyObject *kernel_py_save(PyObject *object, PyObject *unused)
{
    (void)unused;
    KernelObject *self = (KernelObject *)object;
    if (!take(self))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)kernel_saved_size(self->kernel));
    if (bytes != NULL)
        kernel_save(self->kernel, (uint8_t *)PyBytes_AsString(bytes));
    return bytes;
}

static PyObject *kernel_py_save_seen(PyObject *object, PyObject *unused)
{
    (void)unused;
    KernelObject *self = (KernelObject *)object;
    if (!take(self))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)kernel_saved_seen_size(self->kernel));
    if (bytes != NULL)
        kernel_save_seen(self->kernel, (uint8_t *)PyBytes_AsString(bytes));
    return bytes;
}

static PyObject *kernel_py_load(PyObject *object, PyObject *bytes)
{
    KernelObject *self = (KernelObject *)object;
    char *at;
    Py_ssize_t size;
    if (!take(self) || PyBytes_AsStringAndSize(bytes, &at, &size) != 0)
        return NULL;
    const char *reason = kernel_load(self->kernel, (const uint8_t *)at, (size_t)size);
    if (reason != NULL)
        return PyErr_Format(PyExc_ValueError, "%s", reason);
    Py_RETURN_NONE;
}

static PyObject *kernel_py_keep(PyObject *object, PyObject *args)
{
    KernelObject *self = (KernelObject *)object;
    unsigned int size, payload;
    long long span_ns;
    if (!take(self) || !PyArg_ParseTuple(args, "ILI", &size, &span_ns, &payload))
        return NULL;
    if (size < RING_MIN || size > RING_MAX)
        return PyErr_Format(PyExc_ValueError, "a ring of %u bytes is not in %d .. %d", size, RING_MIN, RING_MAX);
    if (span_ns < 1000000000 || span_ns > 60000000000)
        return PyErr_Format(PyExc_ValueError, "a ring of %lld ns is not in 1 s .. 60 s", span_ns);
    if (payload > RING_PAYLOAD_MAX)
        return PyErr_Format(PyExc_ValueError, "%u bytes of payload are not in 0 .. %d", payload, RING_PAYLOAD_MAX);
    if (kernel_ring(self->kernel) != NULL) {
        PyErr_SetString(PyExc_ValueError, "there is a ring");
        return NULL;
    }
    if (!kernel_keep(self->kernel, size, span_ns, payload))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *kernel_py_cut(PyObject *object, PyObject *args)
{
    KernelObject *self = (KernelObject *)object;
    struct cut cut;
    long long from_ns, to_ns;
    unsigned long long mac;
    const char *address;
    Py_ssize_t address_size, room;
    int newest, ip_version;

    memset(&cut, 0, sizeof cut);
    if (!take(self) || !PyArg_ParseTuple(args, "LLKiy#ipn", &from_ns, &to_ns, &mac, &ip_version, &address, &address_size,
                                         &cut.linktype, &newest, &room))
        return NULL;
    if ((size_t)address_size > sizeof cut.subject.address || room < 0 || ip_version < 0 || ip_version > 6) {
        PyErr_SetString(PyExc_ValueError, "an address of more than 16 bytes, a version above 6 or no room");
        return NULL;
    }
    const struct ring *ring = kernel_ring(self->kernel);
    if (ring == NULL) {
        PyErr_SetString(PyExc_ValueError, "there is no ring");
        return NULL;
    }
    cut.from_ns = from_ns;
    cut.to_ns = to_ns;
    cut.newest = newest != 0;
    cut.subject.mac = mac;
    cut.subject.ip_version = (uint8_t)ip_version;
    memcpy(cut.subject.address, address, (size_t)address_size);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, room);
    if (bytes == NULL)
        return NULL;
    size_t made;
    uint8_t *out = (uint8_t *)PyBytes_AsString(bytes);
    self->busy = true;
    Py_BEGIN_ALLOW_THREADS
    if (cut.linktype < 0)
        cut.linktype = ring_linktype(ring, &cut);
    made = ring_cut(ring, &cut, out, (size_t)room);
    Py_END_ALLOW_THREADS
    self->busy = false;
    PyObject *found = Py_BuildValue("(iy#)", cut.linktype, out, (Py_ssize_t)made);
    Py_DECREF(bytes);
    return found;
}

static PyObject *kernel_get_simd(PyObject *object, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(kernel_simd(((KernelObject *)object)->kernel));
}

static PyMethodDef kernel_methods[] = {
    {"push", kernel_py_push, METH_VARARGS, "push(capture, values, meta) -> rows written; 0 at the end."},
    {"push_frames", kernel_py_push_frames, METH_VARARGS, "push_frames(frames, linktype, values, meta) -> rows written."},
    {"counts", kernel_py_counts, METH_NOARGS, "Counters by name."},
    {"memory", kernel_py_memory, METH_NOARGS, "Bytes by part."},
    {"save", kernel_py_save, METH_NOARGS, "The learnt state."},
    {"keep", kernel_py_keep, METH_VARARGS, "keep(size, span_ns, payload): have a ring from now on."},
    {"cut", kernel_py_cut, METH_VARARGS,
     "cut(from_ns, to_ns, mac, ip_version, address, linktype, newest, room) -> (linktype, pcap records)."},
    {"save_seen", kernel_py_save_seen, METH_NOARGS, "The state without streams: devices and what they have seen."},
    {"load", kernel_py_load, METH_O, "Take a saved state; ValueError says why not."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef kernel_getset[] = {
    {"simd", kernel_get_simd, NULL, "Which instance of the arithmetic runs.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot kernel_slots[] = {
    {Py_tp_doc, "Kernel(max_streams, max_devices, compat, float_time, seed, simd='auto')"},
    {Py_tp_new, (void *)kernel_py_new},
    {Py_tp_dealloc, (void *)kernel_py_dealloc},
    {Py_tp_methods, kernel_methods},
    {Py_tp_getset, kernel_getset},
    {0, NULL},
};

static PyType_Spec kernel_spec = {
    .name = "edge_agent._kernel.Kernel",
    .basicsize = sizeof(KernelObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = kernel_slots,
};

/* ---- Senders, and scores ---- */

typedef struct {
    PyObject_HEAD
    struct senders *senders;
} SendersObject;

/* A contiguous buffer of exactly `size` bytes. */
static bool get_sized(PyObject *object, int flags, size_t size, const char *name, Py_buffer *view)
{
    if (PyObject_GetBuffer(object, view, flags | PyBUF_C_CONTIGUOUS) != 0)
        return false;
    if ((size_t)view->len == size && (uintptr_t)view->buf % 4 == 0)
        return true;
    PyErr_Format(PyExc_ValueError, "%s has %zd bytes, expected %zd", name, view->len, (Py_ssize_t)size);
    PyBuffer_Release(view);
    return false;
}

static PyObject *senders_py_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"capacity", "rate", "seed", "v4", "v6", NULL};
    unsigned int capacity;
    double rate;
    unsigned long long seed;
    const char *v4, *v6;
    Py_ssize_t v4_size, v6_size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IdKy#y#", names, &capacity, &rate, &seed, &v4, &v4_size, &v6, &v6_size))
        return NULL;
    if (capacity < 1 || capacity > 1 << 20 || !(rate >= 0) || v4_size % (Py_ssize_t)sizeof(struct network4) != 0 ||
        v6_size % (Py_ssize_t)sizeof(struct network6) != 0)
        return PyErr_Format(PyExc_ValueError, "Senders: a size or rate is impossible");
    SendersObject *self = (SendersObject *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->senders = senders_new(capacity, rate, seed, (const void *)v4, (size_t)v4_size / sizeof(struct network4),
                                (const void *)v6, (size_t)v6_size / sizeof(struct network6));
    if (self->senders == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void senders_py_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    senders_free(((SendersObject *)object)->senders);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyObject *senders_py_route(PyObject *object, PyObject *args)
{
    enum { META, T_NS, ORDER, STARTS, INCOMING, CARRIES, CHOSEN, ADDRESSES, VERSIONS, KEYS, SLOT, GROUP, ARRAYS };
    static const char *const names[ARRAYS] = {"meta",   "t_ns",      "order",    "starts", "incoming", "carries",
                                              "chosen", "addresses", "versions", "keys",   "slot",     "group"};
    static const size_t width[ARRAYS] = {sizeof(struct row_meta), 8, 8, 8, 1, 1, 1, 16, 1, 24, 4, 4};
    PyObject *arrays[ARRAYS];
    Py_buffer views[ARRAYS];
    if (!PyArg_ParseTuple(args, "OOOOOOOOOOOO", &arrays[0], &arrays[1], &arrays[2], &arrays[3], &arrays[4], &arrays[5],
                          &arrays[6], &arrays[7], &arrays[8], &arrays[9], &arrays[10], &arrays[11]))
        return NULL;
    Py_ssize_t n = PyObject_Size(arrays[META]);
    size_t slots = 4, groups = 0;
    if (n < 0 || n > 1 << 24)
        return PyErr_Format(PyExc_ValueError, "route: too many rows at once");
    while (slots < 2 * (size_t)n)
        slots *= 2;
    int got = 0;
    for (; got < ARRAYS; got++) {
        size_t count = got == STARTS ? (size_t)n + 1 : got == SLOT ? slots : (size_t)n;
        if (!get_sized(arrays[got], got > T_NS ? PyBUF_WRITABLE : PyBUF_SIMPLE, count * width[got], names[got], &views[got]))
            break;
    }
    if (got == ARRAYS) {
        struct routes out = {
            .order = views[ORDER].buf, .starts = views[STARTS].buf, .incoming = views[INCOMING].buf, .carries = views[CARRIES].buf,
            .chosen = views[CHOSEN].buf, .addresses = views[ADDRESSES].buf, .versions = views[VERSIONS].buf, .keys = views[KEYS].buf,
            .slot = views[SLOT].buf, .group = views[GROUP].buf, .slots = (uint32_t)slots,
        };
        groups = senders_route(((SendersObject *)object)->senders, views[META].buf, views[T_NS].buf, (size_t)n, &out);
    }
    for (int i = 0; i < got; i++)
        PyBuffer_Release(&views[i]);
    return got == ARRAYS ? PyLong_FromSize_t(groups) : NULL;
}

static PyObject *senders_py_counts(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct senders_counts counts;
    senders_counts(((SendersObject *)object)->senders, &counts);
    return Py_BuildValue("(KKKI)", (unsigned long long)counts.scored, (unsigned long long)counts.shed,
                         (unsigned long long)counts.evicted, counts.step);
}

static PyMethodDef senders_methods[] = {
    {"route", senders_py_route, METH_VARARGS, "route(meta, t_ns, <arrays of struct routes>) -> groups."},
    {"counts", senders_py_counts, METH_NOARGS, "(scored, shed, evicted senders, step)."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot senders_slots[] = {
    {Py_tp_doc, "Senders(capacity, rate, seed, v4, v6)"},
    {Py_tp_new, (void *)senders_py_new},
    {Py_tp_dealloc, (void *)senders_py_dealloc},
    {Py_tp_methods, senders_methods},
    {0, NULL},
};

static PyType_Spec senders_spec = {
    .name = "edge_agent._kernel.Senders",
    .basicsize = sizeof(SendersObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = senders_slots,
};

/* A network's transform: its arrays, checked and held once. */
typedef struct {
    PyObject_HEAD
    struct scaling scaling;
    size_t variants;
    Py_buffer views[5]; /* at (if any), mean, inverse, keep, kept */
    int held;
} ScalingObject;

static PyObject *scaling_py_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stride", "at", "mean", "inverse", "keep", "kept", "squash", "clip", NULL};
    PyObject *at, *arrays[4];
    unsigned int stride;
    int squash;
    float clip;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IOOOOOpf", names, &stride, &at, &arrays[0], &arrays[1], &arrays[2],
                                     &arrays[3], &squash, &clip))
        return NULL;
    Py_ssize_t columns = PyObject_Size(arrays[0]), variants = PyObject_Size(arrays[3]);
    if (columns < 1 || variants < 1 || variants > 255 || columns > 1 << 16 || (at == Py_None && (size_t)columns > stride))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "Scaling: a size is impossible");
    ScalingObject *self = (ScalingObject *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    size_t k = (size_t)columns, v = (size_t)variants, sizes[4] = {4 * k, 4 * k * v, 4 * k * v, 4 * v};
    static const char *const called[4] = {"mean", "inverse", "keep", "kept"};
    for (; self->held < 4; self->held++)
        if (!get_sized(arrays[self->held], PyBUF_SIMPLE, sizes[self->held], called[self->held], &self->views[self->held]))
            goto failed;
    self->scaling = (struct scaling){
        .stride = stride, .columns = k, .mean = self->views[0].buf, .inverse = self->views[1].buf, .keep = self->views[2].buf,
        .kept = self->views[3].buf, .clip = clip, .squash = squash != 0,
    };
    self->variants = v;
    if (at != Py_None) {
        if (!get_sized(at, PyBUF_SIMPLE, 4 * k, "at", &self->views[4]))
            goto failed;
        self->held = 5;
        self->scaling.at = self->views[4].buf;
        for (size_t j = 0; j < k; j++)
            if (self->scaling.at[j] >= stride) {
                PyErr_Format(PyExc_ValueError, "Scaling: column %u of %u", self->scaling.at[j], stride);
                goto failed;
            }
    }
    return (PyObject *)self;

failed:
    Py_DECREF((PyObject *)self);
    return NULL;
}

static void scaling_py_dealloc(PyObject *object)
{
    ScalingObject *self = (ScalingObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (int i = 0; i < self->held; i++)
        PyBuffer_Release(&self->views[i]);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* `from` is values or rebuilt, `variant` None or one of each row: out of z, and inputs or errors. */
static PyObject *scaling_py_run(ScalingObject *self, PyObject *args, bool back)
{
    PyObject *arrays[4];
    Py_buffer views[4];
    if (!PyArg_ParseTuple(args, "OOOO", &arrays[0], &arrays[1], &arrays[2], &arrays[3]))
        return NULL;
    Py_ssize_t rows = PyObject_Size(arrays[0]);
    if (rows < 0)
        return NULL;
    size_t n = (size_t)rows, k = self->scaling.columns, line = 4 * k;
    size_t sizes[4] = {n * (back ? line : 4 * self->scaling.stride), n, n * line, n * (back ? 4 : line)};
    static const char *const names[4] = {"rows", "variant", "z", "out"};
    bool writable[4] = {false, false, !back, true}, good = true;
    int got[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4 && good; i++)
        if (i != 1 || arrays[i] != Py_None) {
            got[i] = get_sized(arrays[i], writable[i] ? PyBUF_WRITABLE : PyBUF_SIMPLE, sizes[i], names[i], &views[i]);
            good = got[i];
        }
    const uint8_t *variant = got[1] ? views[1].buf : NULL;
    for (size_t i = 0; good && variant != NULL && i < n; i++)
        if (variant[i] >= self->variants) {
            PyErr_Format(PyExc_ValueError, "row %zd has variant %d of %zd", (Py_ssize_t)i, variant[i], (Py_ssize_t)self->variants);
            good = false;
        }
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        if (back)
            row_errors(&self->scaling, views[2].buf, views[0].buf, variant, n, views[3].buf);
        else
            scale_rows(&self->scaling, views[0].buf, variant, n, views[2].buf, views[3].buf);
        Py_END_ALLOW_THREADS
    }
    for (int i = 0; i < 4; i++)
        if (got[i])
            PyBuffer_Release(&views[i]);
    if (!good)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *scaling_py_inputs(PyObject *object, PyObject *args)
{
    return scaling_py_run((ScalingObject *)object, args, false);
}

static PyObject *scaling_py_errors(PyObject *object, PyObject *args)
{
    return scaling_py_run((ScalingObject *)object, args, true);
}

static PyMethodDef scaling_methods[] = {
    {"inputs", scaling_py_inputs, METH_VARARGS, "inputs(values, variant, z, inputs): scale and clip."},
    {"errors", scaling_py_errors, METH_VARARGS, "errors(rebuilt, variant, z, out): mean squared error of each row."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot scaling_slots[] = {
    {Py_tp_doc, "Scaling(stride, at, mean, inverse, keep, kept, squash, clip)"},
    {Py_tp_new, (void *)scaling_py_new},
    {Py_tp_dealloc, (void *)scaling_py_dealloc},
    {Py_tp_methods, scaling_methods},
    {0, NULL},
};

static PyType_Spec scaling_spec = {
    .name = "edge_agent._kernel.Scaling",
    .basicsize = sizeof(ScalingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = scaling_slots,
};

static PyObject *py_highest_ratios(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *arrays[4];
    Py_buffer views[4];
    if (!PyArg_ParseTuple(args, "OOOO", &arrays[0], &arrays[1], &arrays[2], &arrays[3]))
        return NULL;
    Py_ssize_t rows = PyObject_Size(arrays[0]), columns = PyObject_Size(arrays[1]);
    if (rows < 0 || columns < 0)
        return NULL;
    size_t sizes[4] = {4 * COLUMNS * (size_t)rows, 4 * (size_t)columns, 8 * (size_t)columns, 8 * (size_t)rows};
    static const char *const names[4] = {"values", "at", "bounds", "out"};
    int got = 0;
    while (got < 4 && get_sized(arrays[got], got == 3 ? PyBUF_WRITABLE : PyBUF_SIMPLE, sizes[got], names[got], &views[got]))
        got++;
    bool good = got == 4;
    for (Py_ssize_t j = 0; good && j < columns; j++)
        if (((const uint32_t *)views[1].buf)[j] >= COLUMNS) {
            PyErr_SetString(PyExc_ValueError, "at: no such column");
            good = false;
        }
    if (good)
        highest_ratios(views[0].buf, COLUMNS, views[1].buf, views[2].buf, (size_t)columns, (size_t)rows, views[3].buf);
    for (int i = 0; i < got; i++)
        PyBuffer_Release(&views[i]);
    if (!good)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_give_back_memory(PyObject *module, PyObject *args)
{
    (void)module, (void)args;
    Py_BEGIN_ALLOW_THREADS
    memory_give_back();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"give_back_memory", py_give_back_memory, METH_NOARGS, "Give back what starting took and running does not need."},
    {"highest_ratios", py_highest_ratios, METH_VARARGS, "highest_ratios(values, at, bounds, out)"},
    {NULL, NULL, 0, NULL},
};

/* ---- the module ---- */

/* (name, offset, size) of every field, so that features.ROW_META can be compared with the struct that is compiled in. */
static PyObject *layout(void)
{
#define FIELD(name) #name, (int)offsetof(struct row_meta, name), (int)sizeof(((struct row_meta *)0)->name)
    return Py_BuildValue("((sii)(sii)(sii)(sii)(sii)(sii)(sii)(sii)(sii)(sii)(sii)(sii)(sii)(sii))", FIELD(t_ns),
                         FIELD(src_mac), FIELD(dst_mac), FIELD(src), FIELD(dst), FIELD(sport), FIELD(dport), FIELD(length),
                         FIELD(ethertype), FIELD(flags), FIELD(interface), FIELD(ip_version), FIELD(proto), FIELD(tcp_flags));
#undef FIELD
}

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    state->capture_error = PyErr_NewExceptionWithDoc(
        "edge_agent.capture.CaptureError", "A capture that cannot be read; the message names it and the reason.", NULL, NULL);
    if (state->capture_error == NULL || PyModule_AddObjectRef(module, "CaptureError", state->capture_error) != 0)
        return -1;
    state->capture_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &capture_spec, NULL);
    if (state->capture_type == NULL || PyModule_AddType(module, state->capture_type) != 0)
        return -1;
    state->live_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &live_spec, NULL);
    if (state->live_type == NULL || PyModule_AddType(module, state->live_type) != 0)
        return -1;
    PyObject *kernel_type = PyType_FromModuleAndSpec(module, &kernel_spec, NULL);
    if (kernel_type == NULL)
        return -1;
    int failed = PyModule_AddType(module, (PyTypeObject *)kernel_type);
    Py_DECREF(kernel_type);
    PyType_Spec *const plain[] = {&senders_spec, &scaling_spec};
    for (int i = 0; i < 2; i++) {
        PyObject *made = PyType_FromModuleAndSpec(module, plain[i], NULL);
        if (made == NULL || PyModule_AddType(module, (PyTypeObject *)made) != 0) {
            Py_XDECREF(made);
            return -1;
        }
        Py_DECREF(made);
    }
    PyObject *fields = layout();
    failed = failed || fields == NULL || PyModule_AddObjectRef(module, "ROW_META_LAYOUT", fields) != 0 ||
             PyModule_AddIntConstant(module, "ROW_META_SIZE", sizeof(struct row_meta)) != 0 ||
             PyModule_AddIntConstant(module, "COLUMNS", COLUMNS) != 0 ||
             PyModule_AddIntConstant(module, "NEW_PEER", NEW_PEER) != 0 ||
             PyModule_AddIntConstant(module, "NEW_SOCKET", NEW_SOCKET) != 0 ||
             PyModule_AddIntConstant(module, "FRAGMENT", FRAGMENT) != 0 ||
             PyModule_AddIntConstant(module, "TRUNCATED", TRUNCATED) != 0 ||
             PyModule_AddIntConstant(module, "ICMP_QUOTED", ICMP_QUOTED) != 0 ||
             PyModule_AddIntConstant(module, "ARP", ARP) != 0 || PyModule_AddIntConstant(module, "PORTS", PORTS) != 0;
    Py_XDECREF(fields);
    return failed ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->capture_type);
    Py_VISIT(state->live_type);
    Py_VISIT(state->capture_error);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->capture_type);
    Py_CLEAR(state->live_type);
    Py_CLEAR(state->capture_error);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "edge_agent._kernel",
    .m_doc = "Frames to rows, in C; see kernel/kernel.h.",
    .m_size = sizeof(struct module_state),
    .m_slots = module_slots,
    .m_methods = module_methods,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&module_def);
}
