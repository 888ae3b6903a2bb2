/* The arithmetic of one row, for lanes [base, base + N) of every array; a template without an include guard.
 *
 * stats.c includes it once per vector type with
 *     VEC         N doubles as a GCC vector; MASK, BITS the same of int64_t and uint64_t
 *     N           lanes in a VEC
 *     FN(name)    the name of a function of this instance
 *     TARGET      its target attribute
 *     SQRT(x)     the square root of each lane
 * and defines minus_lambda[LANES], struct duo and struct step.
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

/* 2^x, x <= 0: 2^n by the exponent, 2^r = 1 + r q(r) for |r| <= 1/2 with q the degree-10 Chebyshev interpolant of
 * (2^r - 1)/r (error 3e-18). 0 below 2^-1021. */
INLINE VEC FN(power)(VEC x)
{
    const double round = 0x1.8p52; /* adding it leaves the nearest integer in the low bits */
    VEC shifted = x + round;
    VEC r = x - (shifted - round), r2 = r * r, r4 = r2 * r2;
    VEC low = (0x1.62e42fefa39efp-1 + r * 0x1.ebfbdff82c598p-3) + r2 * (0x1.c6b08d704a0c2p-5 + r * 0x1.3b2ab6fba1ddap-7);
    VEC mid = (0x1.5d87fe78a5276p-10 + r * 0x1.430913096fd9fp-13) + r2 * (0x1.ffcbfc670dcd4p-17 + r * 0x1.62bfd47773353p-20);
    VEC top = (0x1.b524fae627834p-24 + r * 0x1.e6063f7217bc6p-28) + r2 * 0x1.e9d3fe3952179p-32;
    VEC power = 1.0 + r * (low + r4 * (mid + r4 * top));
    BITS scaled = (BITS)power + ((BITS)shifted << 52);
    return FN(keep_where)(x > -1021.0, (VEC)scaled);
}

INLINE VEC FN(decay)(int base, double gap)
{
    return FN(power)(FN(load)(minus_lambda, base) * gap);
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

/* After add() of the direction: decay the reverse, correlate, write seven columns a decay. */
INLINE void FN(put_2d)(const struct duo *d, double *out, int base, VEC f, VEC f_cf3, struct FN(moment) m)
{
    VEC zero = f - f, std = SQRT(m.var), magnitude = m.mean, radius = m.var, covariance = zero, pcc = zero;
    struct way *r = d->reverse;

    FN(store)(d->forward->residual, base, m.residual);
    if (d->reversed) { /* else the reverse is all zero, and with it CF3 */
        VEC rw = m.w, r_residual = m.residual, r_mean = m.mean, r_var = m.var, cf3 = FN(load)(d->cf3, base) * f_cf3;
        MASK alive = ~(MASK)zero;
        if (!d->self) {
            alive = FN(load)(minus_lambda, base) * d->reverse_gap >= -1075.0;
            rw = FN(keep_where)(alive, FN(load)(r->w, base) * f);
            r_residual = FN(keep_where)(alive, FN(load)(r->residual, base) * f);
            r_mean = FN(load)(r->mean, base);
            r_var = FN(load)(r->var, base);
            cf3 = FN(keep_where)(alive, cf3);
            FN(store)(r->w, base, rw);
            FN(store)(r->residual, base, r_residual);
        }
        cf3 = cf3 + m.residual * r_residual;
        FN(store)(d->cf3, base, cf3);
        VEC product = std * SQRT(r_var);
        magnitude = FN(select)(alive, SQRT(m.mean * m.mean + r_mean * r_mean), magnitude);
        radius = FN(select)(alive, SQRT(m.var * m.var + r_var * r_var), radius);
        covariance = FN(keep_where)(alive, cf3 / ((m.w + rw) * 0.5));
        pcc = FN(keep_where)(alive & (product > 0.0), covariance / product);
    }
    FN(put)(out, base, 7, m.w);
    FN(put)(out + 1, base, 7, m.mean);
    FN(put)(out + 2, base, 7, std);
    FN(put)(out + 3, base, 7, magnitude);
    FN(put)(out + 4, base, 7, radius);
    FN(put)(out + 5, base, 7, covariance);
    FN(put)(out + 6, base, 7, pcc);
}

/* How much each stream keeps. */
struct FN(decays) {
    VEC of[GAPS];
};

INLINE struct FN(decays) FN(decays_of)(const struct step *s, int base)
{
    struct FN(decays) d;
    d.of[GAP_HOST] = FN(decay)(base, s->gap[GAP_HOST]);
    d.of[GAP_DEVICE] = FN(decay)(base, s->gap[GAP_DEVICE]);
    d.of[GAP_HH] = FN(decay)(base, s->gap[GAP_HH]);
    d.of[GAP_HPHP] = FN(decay)(base, s->gap[GAP_HPHP]);
    d.of[GAP_HH_CF3] = d.of[GAP_JITTER] = d.of[GAP_HH];
    d.of[GAP_HPHP_CF3] = d.of[GAP_HPHP];
    d.of[GAP_MAC] = d.of[GAP_HOST];
    if (s->pair.reversed)
        d.of[GAP_HH_CF3] = FN(decay)(base, s->gap[GAP_HH_CF3]);
    if (s->socket.reversed)
        d.of[GAP_HPHP_CF3] = FN(decay)(base, s->gap[GAP_HPHP_CF3]);
    if (s->gap[GAP_JITTER] != s->gap[GAP_HH]) /* a reverse packet came between */
        d.of[GAP_JITTER] = FN(decay)(base, s->gap[GAP_JITTER]);
    if (s->mac != NULL)
        d.of[GAP_MAC] = FN(decay)(base, s->gap[GAP_MAC]);
    return d;
}

/* Independent work stands together, so that the processor can overlap its long chains of divisions. */
INLINE void FN(row)(const struct step *s, double *out, int base, struct FN(decays) f)
{
    struct host *host = s->host, *mac = s->mac;
    struct way *hh = s->pair.forward, *hphp = s->socket.forward;
    struct jitter *jitter = s->jitter;
    struct device *device = s->device;

    struct FN(moment) m_host = FN(add)(host->w, host->mean, host->var, base, f.of[GAP_HOST], s->length);
    struct FN(moment) m_device = FN(add)(device->w, device->mean, device->var, base, f.of[GAP_DEVICE], s->length);
    struct FN(moment) m_hh = FN(add)(hh->w, hh->mean, hh->var, base, f.of[GAP_HH], s->length);
    struct FN(moment) m_hphp = FN(add)(hphp->w, hphp->mean, hphp->var, base, f.of[GAP_HPHP], s->length);
    struct FN(moment) m_jitter = FN(add)(jitter->w, jitter->mean, jitter->var, base, f.of[GAP_JITTER], s->jitter_value);

    FN(put_1d)(out + H, base, m_host);
    if (mac != NULL)
        m_host = FN(add)(mac->w, mac->mean, mac->var, base, f.of[GAP_MAC], s->length);
    FN(put_1d)(out + MI_DIR, base, m_host);
    FN(put_1d)(out + HH_JIT, base, m_jitter);
    FN(put_2d)(&s->pair, out + HH, base, f.of[GAP_HH], f.of[GAP_HH_CF3], m_hh);
    FN(put_2d)(&s->socket, out + HPHP, base, f.of[GAP_HPHP], f.of[GAP_HPHP_CF3], m_hphp);

    VEC peers = FN(flush)(FN(load)(device->peers, base) * f.of[GAP_DEVICE]) + s->new_peer;
    VEC sockets = FN(flush)(FN(load)(device->sockets, base) * f.of[GAP_DEVICE]) + s->new_socket;
    FN(store)(device->peers, base, peers);
    FN(store)(device->sockets, base, sockets);
    FN(put)(out + DEVICE, base, 5, m_device.w);
    FN(put)(out + DEVICE + 1, base, 5, m_device.mean);
    FN(put)(out + DEVICE + 2, base, 5, m_device.var);
    FN(put)(out + DEVICE + 3, base, 5, peers);
    FN(put)(out + DEVICE + 4, base, 5, sockets);
}

#undef INLINE
#undef VEC
#undef MASK
#undef BITS
#undef N
#undef FN
#undef TARGET
#undef SQRT
