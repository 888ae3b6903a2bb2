/* The arithmetic of one row, for lanes [base, base + N) of every array; a template without an include guard.
 *
 * stats.c includes it once per vector type with
 *     VEC, MASK   N doubles and N int64_t as a GCC vector
 *     N           lanes in a VEC
 *     FN(name)    the name of a function of this instance
 *     TARGET      its target attribute
 *     SQRT(x)     the square root of each lane
 * Only IEEE operations that round correctly, lane by lane and never fused: instances agree bit for bit.
 */

#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE VEC FN(load)(const double *array, int base)
{
    VEC v;
    memcpy(&v, array + base, sizeof v);
    return v;
}

INLINE void FN(store)(double *array, int base, VEC v)
{
    memcpy(array + base, &v, sizeof v);
}

/* One statistic of each decay into its column; the lane of padding has none. */
INLINE void FN(put)(double *out, int base, int stride, VEC v)
{
    for (int i = 0; i < N; i++)
        if (base + i < DECAYS)
            out[(base + i) * stride] = v[i];
}

INLINE VEC FN(keep_where)(MASK m, VEC v)
{
    return (VEC)(m & (MASK)v);
}

INLINE VEC FN(select)(MASK m, VEC yes, VEC no)
{
    return (VEC)((m & (MASK)yes) | (~m & (MASK)no));
}

/* Values so small that they would stay denormal for ever (and cost a trap each time) are zero. */
INLINE VEC FN(flush)(VEC v)
{
    return FN(keep_where)(v > 1e-290, v);
}

/* 2^(-lambda gap), gap >= 0: 2^n by the exponent, 2^r = 1 + r q(r) for |r| <= 1/2 with q the degree-10 Chebyshev interpolant
 * of (2^r - 1)/r (error 3e-18). 0 below 2^-1021. */
INLINE VEC FN(decay)(int base, double gap)
{
    static const double minus_lambda[LANES] = {-5, -3, -1, -0.1, -0.01, -0.01};
    const double round = 0x1.8p52; /* adding it leaves the nearest integer in the low bits */
    VEC x = FN(load)(minus_lambda, base) * gap;
    VEC shifted = x + round;
    VEC r = x - (shifted - round), r2 = r * r, r4 = r2 * r2;
    VEC low = (0x1.62e42fefa39efp-1 + r * 0x1.ebfbdff82c598p-3) + r2 * (0x1.c6b08d704a0c2p-5 + r * 0x1.3b2ab6fba1ddap-7);
    VEC mid = (0x1.5d87fe78a5276p-10 + r * 0x1.430913096fd9fp-13) + r2 * (0x1.ffcbfc670dcd4p-17 + r * 0x1.62bfd47773353p-20);
    VEC top = (0x1.b524fae627834p-24 + r * 0x1.e6063f7217bc6p-28) + r2 * 0x1.e9d3fe3952179p-32;
    VEC power = 1.0 + r * (low + r4 * (mid + r4 * top));
    MASK scaled = (MASK)power + ((MASK)shifted << 52);
    return FN(keep_where)(x > -1021.0, (VEC)scaled);
}

struct FN(moment) {
    VEC w, mean, var, residual;
};

/* Decay a stream by f and add v (kernel.h, THE STREAMS). */
INLINE struct FN(moment) FN(add)(double *w, double *mean, double *var, int base, VEC f, double v)
{
    struct FN(moment) s;
    VEC kept = FN(load)(w, base) * f, before = FN(load)(mean, base);
    s.w = kept + 1.0;
    VEC a = 1.0 / s.w, b = kept * a, d = v - before;
    s.residual = b * d;
    s.mean = FN(select)(a > 0.5, v - s.residual, before + a * d);
    s.var = FN(flush)(b * (FN(load)(var, base) + a * d * d));
    FN(store)(w, base, s.w);
    FN(store)(mean, base, s.mean);
    FN(store)(var, base, s.var);
    return s;
}

INLINE void FN(put_1d)(double *out, int base, struct FN(moment) s)
{
    FN(put)(out, base, 3, s.w);
    FN(put)(out + 1, base, 3, s.mean);
    FN(put)(out + 2, base, 3, s.var);
}

/* A direction and its reverse: decay both, add v to the first, write seven columns a decay. Returns the decay. */
INLINE VEC FN(duo)(const struct duo *d, double v, double *out, int base)
{
    VEC f = FN(decay)(base, d->gap), zero = f - f;
    struct way *s = d->forward, *r = d->reverse;
    struct FN(moment) m = FN(add)(s->w, s->mean, s->var, base, f, v);
    VEC std = SQRT(m.var), magnitude = m.mean, radius = m.var, covariance = zero, pcc = zero;
    FN(store)(s->residual, base, m.residual);

    if (d->reversed) { /* else the reverse is all zero, and with it CF3 */
        VEC rw, r_residual, cf = FN(load)(d->cf3, base) * f;
        MASK alive = ~(MASK)zero;
        VEC r_mean = FN(load)(r->mean, base), r_var = FN(load)(r->var, base);
        if (d->self) {
            rw = m.w;
            r_residual = m.residual;
        } else {
            static const double minus_lambda[LANES] = {-5, -3, -1, -0.1, -0.01, -0.01};
            if (d->cf3_rule == CF3_TWICE)
                cf = cf * f;
            else
                cf = FN(load)(d->cf3, base) * FN(decay)(base, d->cf3_gap);
            alive = FN(load)(minus_lambda, base) * d->reverse_gap >= -1075.0;
            rw = FN(keep_where)(alive, FN(load)(r->w, base) * f);
            r_residual = FN(keep_where)(alive, FN(load)(r->residual, base) * f);
            cf = FN(keep_where)(alive, cf);
            FN(store)(r->w, base, rw);
            FN(store)(r->residual, base, r_residual);
        }
        cf = cf + m.residual * r_residual;
        FN(store)(d->cf3, base, cf);
        VEC product = std * SQRT(r_var);
        magnitude = FN(select)(alive, SQRT(m.mean * m.mean + r_mean * r_mean), magnitude);
        radius = FN(select)(alive, SQRT(m.var * m.var + r_var * r_var), radius);
        covariance = FN(keep_where)(alive, cf / ((m.w + rw) * 0.5));
        pcc = FN(keep_where)(alive & (product > 0.0), covariance / product);
    }
    FN(put)(out, base, 7, m.w);
    FN(put)(out + 1, base, 7, m.mean);
    FN(put)(out + 2, base, 7, std);
    FN(put)(out + 3, base, 7, magnitude);
    FN(put)(out + 4, base, 7, radius);
    FN(put)(out + 5, base, 7, covariance);
    FN(put)(out + 6, base, 7, pcc);
    return f;
}

INLINE void FN(row)(const struct step *s, double *out, int base)
{
    VEC f = FN(decay)(base, s->host_gap);
    struct FN(moment) m = FN(add)(s->host->w, s->host->mean, s->host->var, base, f, s->length);
    FN(put_1d)(out + H, base, m);
    if (s->mac != NULL) {
        f = FN(decay)(base, s->mac_gap);
        m = FN(add)(s->mac->w, s->mac->mean, s->mac->var, base, f, s->length);
    }
    FN(put_1d)(out + MI_DIR, base, m);

    f = FN(duo)(&s->pair, s->length, out + HH, base);
    if (s->jitter_gap != s->pair.gap) /* a reverse packet came between */
        f = FN(decay)(base, s->jitter_gap);
    m = FN(add)(s->jitter->w, s->jitter->mean, s->jitter->var, base, f, s->jitter_value);
    FN(put_1d)(out + HH_JIT, base, m);

    FN(duo)(&s->socket, s->length, out + HPHP, base);

    struct device *device = s->device;
    f = FN(decay)(base, s->device_gap);
    m = FN(add)(device->w, device->mean, device->var, base, f, s->length);
    VEC peers = FN(flush)(FN(load)(device->peers, base) * f) + s->new_peer;
    VEC sockets = FN(flush)(FN(load)(device->sockets, base) * f) + s->new_socket;
    FN(store)(device->peers, base, peers);
    FN(store)(device->sockets, base, sockets);
    FN(put)(out + DEVICE, base, 5, m.w);
    FN(put)(out + DEVICE + 1, base, 5, m.mean);
    FN(put)(out + DEVICE + 2, base, 5, m.var);
    FN(put)(out + DEVICE + 3, base, 5, peers);
    FN(put)(out + DEVICE + 4, base, 5, sockets);
}

#undef INLINE
#undef VEC
#undef MASK
#undef N
#undef FN
#undef TARGET
#undef SQRT
