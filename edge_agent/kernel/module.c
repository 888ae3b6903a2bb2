/* The Python face of the kernel: the type Kernel, the module with all types, and the layout of a row. Capture and Live are in
 * module_sources.c, Senders and Scaling in module_scores.c.
 *
 * edge_agent/capture/sources.py and features.py are its only users; arguments are checked here as far as memory safety
 * needs, meanings are explained there.
 *
 * Frames are taken without the GIL. A Capture, Live or Kernel in use by one thread refuses another (RuntimeError): `busy` is
 * only touched while holding the GIL. */
#include "module.h"

#include <string.h>

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
        PyErr_Format(PyExc_ValueError, "values must be (n, %d) float32 or float64 and meta (n,) ROW_META, n > 0", COLUMNS);
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
    {"highest_ratios", py_highest_ratios, METH_VARARGS, "highest_ratios(values, width, at, bounds, out)"},
    {NULL, NULL, 0, NULL},
};

/* ---- the module ---- */

/* Name -> offset of every field, from which features.ROW_META is built: the struct is the one that is compiled in. */
static PyObject *layout(void)
{
#define FIELD(name) #name, (int)offsetof(struct row_meta, name)
    return Py_BuildValue("{sisisisisisisisisisisisisisisisisisi}", FIELD(t_ns), FIELD(src_mac), FIELD(dst_mac), FIELD(src),
                         FIELD(dst), FIELD(sport), FIELD(dport), FIELD(length), FIELD(ethertype), FIELD(flags),
                         FIELD(interface), FIELD(ip_version), FIELD(proto), FIELD(tcp_flags), FIELD(headers),
                         FIELD(unanswered), FIELD(answers), FIELD(opened));
#undef FIELD
}

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    state->capture_error = PyErr_NewExceptionWithDoc(
        "edge_agent.capture.CaptureError", "A capture that cannot be read; the message names it and the reason.", NULL, NULL);
    if (state->capture_error == NULL || PyModule_AddObjectRef(module, "CaptureError", state->capture_error) != 0)
        return -1;
    state->forbidden = PyErr_NewExceptionWithDoc(
        "edge_agent.capture.CaptureForbidden", "This process may not capture on interfaces.", state->capture_error, NULL);
    if (state->forbidden == NULL || PyModule_AddObjectRef(module, "CaptureForbidden", state->forbidden) != 0)
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
    failed = failed || fields == NULL || PyModule_AddObjectRef(module, "ROW_META_OFFSETS", fields) != 0 ||
             PyModule_AddIntConstant(module, "ROW_META_SIZE", sizeof(struct row_meta)) != 0 ||
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
    Py_VISIT(state->forbidden);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->capture_type);
    Py_CLEAR(state->live_type);
    Py_CLEAR(state->capture_error);
    Py_CLEAR(state->forbidden);
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
