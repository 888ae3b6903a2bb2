/* The Python types Senders and Scaling: which subject a row belongs to, and what a network sees of it. */
#include "module.h"

#include <string.h>

/* ---- Senders ---- */

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
    enum { META, T_NS, ORDER, STARTS, INCOMING, CARRIES, CHOSEN, ADDRESSES, VERSIONS, HOST, KEYS, SLOT, GROUP, ARRAYS };
    static const char *const names[ARRAYS] = {"meta",      "t_ns",     "order",       "starts", "incoming", "carries", "chosen",
                                              "addresses", "versions", "host_counts", "keys",   "slot",     "group"};
    static const size_t width[ARRAYS] = {sizeof(struct row_meta), 8, 8, 8, 1, 1, 1, 16, 1, HOST_COUNTS * 4, 24, 4, 4};
    PyObject *arrays[ARRAYS];
    Py_buffer views[ARRAYS];
    if (!PyArg_ParseTuple(args, "OOOOOOOOOOOOO", &arrays[0], &arrays[1], &arrays[2], &arrays[3], &arrays[4], &arrays[5],
                          &arrays[6], &arrays[7], &arrays[8], &arrays[9], &arrays[10], &arrays[11], &arrays[12]))
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
            .chosen = views[CHOSEN].buf, .addresses = views[ADDRESSES].buf, .versions = views[VERSIONS].buf,
            .host_counts = views[HOST].buf, .keys = views[KEYS].buf, .slot = views[SLOT].buf, .group = views[GROUP].buf,
            .slots = (uint32_t)slots,
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

PyType_Spec senders_spec = {
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

PyType_Spec scaling_spec = {
    .name = "edge_agent._kernel.Scaling",
    .basicsize = sizeof(ScalingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = scaling_slots,
};

PyObject *py_highest_ratios(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *arrays[4];
    Py_buffer views[4];
    unsigned int width;
    if (!PyArg_ParseTuple(args, "OIOOO", &arrays[0], &width, &arrays[1], &arrays[2], &arrays[3]))
        return NULL;
    Py_ssize_t rows = PyObject_Size(arrays[0]), columns = PyObject_Size(arrays[1]);
    if (rows < 0 || columns < 0)
        return NULL;
    if (width > COLUMNS || columns > COLUMNS)
        return PyErr_Format(PyExc_ValueError, "values: too wide");
    size_t sizes[4] = {4 * (size_t)width * (size_t)rows, 4 * (size_t)columns, 8 * (size_t)columns, 8 * (size_t)rows};
    static const char *const names[4] = {"values", "at", "bounds", "out"};
    int got = 0;
    while (got < 4 && get_sized(arrays[got], got == 3 ? PyBUF_WRITABLE : PyBUF_SIMPLE, sizes[got], names[got], &views[got]))
        got++;
    bool good = got == 4;
    for (Py_ssize_t j = 0; good && j < columns; j++)
        if (((const uint32_t *)views[1].buf)[j] >= width) {
            PyErr_SetString(PyExc_ValueError, "at: no such column");
            good = false;
        }
    if (good)
        highest_ratios(views[0].buf, width, views[1].buf, views[2].buf, (size_t)columns, (size_t)rows, views[3].buf);
    for (int i = 0; i < got; i++)
        PyBuffer_Release(&views[i]);
    if (!good)
        return NULL;
    Py_RETURN_NONE;
}
