/* Declarations shared by the files of the Python face, which alone include Python.h. */
#ifndef BOTWATCH_MODULE_H
#define BOTWATCH_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernel.h"

struct module_state {
    PyTypeObject *capture_type, *live_type;
    PyObject *capture_error, *forbidden; /* CaptureError and its CaptureForbidden */
};

/* ---- module_sources.c ---- */

typedef struct {
    PyObject_HEAD
    struct capture *capture; /* NULL when closed */
    PyObject *name;
    PyObject *error;         /* the CaptureError type */
    bool busy;
} CaptureObject;

typedef struct {
    PyObject_HEAD
    struct live *live;
    PyObject *names;             /* tuple of str */
    PyObject *error, *forbidden; /* the types CaptureError and CaptureForbidden */
    bool busy;
} LiveObject;

/* The interfaces of a Live, or NULL with an exception. */
struct live *idle_live(PyObject *object);

extern PyType_Spec capture_spec, live_spec;

/* ---- module_scores.c ---- */

extern PyType_Spec senders_spec, scaling_spec;
PyObject *py_highest_ratios(PyObject *module, PyObject *args);

#endif
