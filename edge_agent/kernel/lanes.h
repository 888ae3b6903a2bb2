/* The arithmetic of one row; a template without an include guard.
 *
 * lanes.c includes it once per vector type with
 *     VEC         N doubles as a GCC vector; MASK, BITS the same of int64_t and uint64_t
 *     N           lanes in a VEC
 *     FN(name)    the name of a function of this instance
 *     TARGET      its target attribute
 *     SQRT(x)     the square root of each lane
 *     FLOATS(x)   a VEC as the low N floats of an __m128; not defined where there is none
 * and defines minus_lambda[LANES]; struct moments, struct duo and struct step are state.h's.
 *
 * Four decays of one stream are side by side in vectors (main_row); the fifth would leave lanes empty, so there two
 * streams are side by side (fifth_row).
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

INLINE VEC FN(all)(double x)
{
    VEC v;
    for (int i = 0; i < N; i++)
        v[i] = x;
    return v;
}

/* Where a row goes: COLUMNS of float or double. `doubles` is a constant in every instance. */
struct FN(cells) {
    void *at;
    bool doubles;
};

INLINE void FN(put)(struct FN(cells) out, int column, int stride, VEC v)
{
    for (int i = 0; i < N; i++)
        if (out.doubles)
            ((double *)out.at)[column + i * stride] = v[i];
        else
            ((float *)out.at)[column + i * stride] = (float)v[i];
}

/* Lane i of a and b side by side from column + i stride on; likewise put_4. */
INLINE void FN(put_2)(struct FN(cells) out, int column, int stride, VEC a, VEC b)
{
#ifdef FLOATS
    if (!out.doubles) {
        float *at = (float *)out.at + column;
        __m128 fa = FLOATS(a), fb = FLOATS(b), low = _mm_unpacklo_ps(fa, fb);
        _mm_storel_pi((__m64 *)at, low);
        _mm_storeh_pi((__m64 *)(at + stride), low);
        if (N == 4) {
            __m128 high = _mm_unpackhi_ps(fa, fb);
            _mm_storel_pi((__m64 *)(at + 2 * stride), high);
            _mm_storeh_pi((__m64 *)(at + 3 * stride), high);
        }
        return;
    }
#endif
    FN(put)(out, column, stride, a);
    FN(put)(out, column + 1, stride, b);
}

INLINE void FN(put_4)(struct FN(cells) out, int column, int stride, VEC a, VEC b, VEC c, VEC d)
{
#ifdef FLOATS
    if (!out.doubles) {
        float *at = (float *)out.at + column;
        __m128 fa = FLOATS(a), fb = FLOATS(b), fc = FLOATS(c), fd = FLOATS(d);
        __m128 ab = _mm_unpacklo_ps(fa, fb), cd = _mm_unpacklo_ps(fc, fd);
        _mm_storeu_ps(at, _mm_movelh_ps(ab, cd));
        _mm_storeu_ps(at + stride, _mm_movehl_ps(cd, ab));
        if (N == 4) {
            ab = _mm_unpackhi_ps(fa, fb);
            cd = _mm_unpackhi_ps(fc, fd);
            _mm_storeu_ps(at + 2 * stride, _mm_movelh_ps(ab, cd));
            _mm_storeu_ps(at + 3 * stride, _mm_movehl_ps(cd, ab));
        }
        return;
    }
#endif
    FN(put_2)(out, column, stride, a, b);
    FN(put_2)(out, column + 2, stride, c, d);
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

/* A stream after a packet. */
struct FN(moment) {
    VEC w, mean, var, residual;
};

/* Decay a stream by f and add v (kernel.h, THE STREAMS). */
INLINE struct FN(moment) FN(add)(VEC w, VEC mean, VEC var, VEC f, VEC v)
{
    struct FN(moment) s;
    VEC kept = w * f;
    s.w = kept + 1.0;
    VEC a = 1.0 / s.w, b = kept * a, d = v - mean;
    s.residual = b * d;
    s.mean = FN(select)(a > 0.5, v - s.residual, mean + a * d);
    s.var = FN(flush)(b * (var + a * d * d));
    return s;
}

INLINE struct FN(moment) FN(add_to)(struct moments *to, int base, VEC f, double v)
{
    VEC w = FN(load)(to->w, base), mean = FN(load)(to->mean, base), var = FN(load)(to->var, base);
    struct FN(moment) s = FN(add)(w, mean, var, f, FN(all)(v));
    FN(store)(to->w, base, s.w);
    FN(store)(to->mean, base, s.mean);
    FN(store)(to->var, base, s.var);
    return s;
}

INLINE void FN(put_1d)(struct FN(cells) out, int column, int stride, struct FN(moment) s)
{
    FN(put_2)(out, column, stride, s.w, s.mean);
    FN(put)(out, column + 2, stride, s.var);
}

/* A direction beside its reverse, which is `alive` or counts as never seen. */
struct FN(joint) {
    VEC std, magnitude, radius, covariance, pcc, back; /* back: the reverse's weight */
};

INLINE struct FN(joint) FN(alone)(struct FN(moment) m)
{
    VEC zero = m.w - m.w;
    return (struct FN(joint)){SQRT(m.var), m.mean, m.var, zero, zero, zero};
}

INLINE struct FN(joint) FN(correlate)(struct FN(moment) m, MASK alive, VEC r_w, VEC r_mean, VEC r_var, VEC cf3)
{
    struct FN(joint) j;
    j.std = SQRT(m.var);
    VEC product = j.std * SQRT(r_var);
    j.magnitude = FN(select)(alive, SQRT(m.mean * m.mean + r_mean * r_mean), m.mean);
    j.radius = FN(select)(alive, SQRT(m.var * m.var + r_var * r_var), m.var);
    j.covariance = FN(keep_where)(alive, cf3 / ((m.w + r_w) * 0.5));
    j.pcc = FN(keep_where)(alive & (product > 0.0), j.covariance / product);
    j.back = r_w;
    return j;
}

INLINE void FN(put_2d)(struct FN(cells) out, int column, int stride, struct FN(moment) m, struct FN(joint) j)
{
    FN(put_4)(out, column, stride, m.w, m.mean, j.std, j.magnitude);
    FN(put_4)(out, column + 3, stride, j.magnitude, j.radius, j.covariance, j.pcc);
}

/* Every lane where `lambda gap` has not yet forgotten everything. */
INLINE MASK FN(alive)(VEC minus_lambda_gap)
{
    return minus_lambda_gap >= -1075.0;
}

/* After add_to() of the direction: decay the reverse and correlate. */
INLINE struct FN(joint) FN(join)(const struct duo *d, int base, VEC f, VEC f_cf3, struct FN(moment) m)
{
    struct way *r = d->reverse;
    FN(store)(d->forward->residual, base, m.residual);
    if (!d->reversed) /* the reverse is all zero, and with it CF3 */
        return FN(alone)(m);
    VEC r_w = m.w, r_residual = m.residual, r_mean = m.mean, r_var = m.var, cf3 = FN(load)(d->cf3, base) * f_cf3;
    MASK alive = FN(alive)(FN(load)(minus_lambda, base) * d->reverse_gap);
    if (!d->self) {
        r_w = FN(keep_where)(alive, FN(load)(r->m.w, base) * f);
        r_residual = FN(keep_where)(alive, FN(load)(r->residual, base) * f);
        r_mean = FN(load)(r->m.mean, base);
        r_var = FN(load)(r->m.var, base);
        cf3 = FN(keep_where)(alive, cf3);
        FN(store)(r->m.w, base, r_w);
        FN(store)(r->residual, base, r_residual);
    }
    cf3 = cf3 + m.residual * r_residual;
    FN(store)(d->cf3, base, cf3);
    return FN(correlate)(m, alive, r_w, r_mean, r_var, cf3);
}

/* What a float keeps; values so small that it would stay denormal are zero. */
INLINE float FN(left)(float value, double f)
{
    float left = value * (float)f;
    return left > 1e-30f ? left : 0;
}

/* Write what a row has beside its columns for one of the slow decays, and decay and add to what it is of (kernel.h, MISSING
 * AND OPENED). `weight` and `back` are the pair's, f is what it keeps. */
INLINE void FN(tell)(const struct step *s, int slow, double weight, double back, double f)
{
    struct pair *pair = s->numbers;
    struct row_meta *row = s->row;
    if (pair->channel.told & TOLD_ERROR) {
        float *errors = pair->errors[slow];
        errors[0] = FN(left)(errors[0], f);
        errors[1] = FN(left)(errors[1], f);
        errors[s->at] += s->fails;
        back = back > errors[s->back] ? back - errors[s->back] : 0;
    }
    double missing = weight - s->answers * back; /* with INFINITY that or not a number: neither is above 0 */
    row->unanswered[slow] = missing > 0 ? (float)missing : 0;
    if (slow == 0)
        return;
    row->answers = (float)back;
    row->opened = 0;
    if (pair->channel.told & TOLD_OPENED) {
        float *opened = pair->opened[0];
        for (int i = 0; i < 4; i++)
            opened[i] = FN(left)(opened[i], f);
        pair->opened[s->at][s->login] += s->opens;
        row->opened = s->tries ? pair->opened[s->at][s->login] : 0;
    }
    if (s->ping)
        row->opened = s->device->pinged = FN(left)(s->device->pinged, FN(power)(FN(all)(s->ping_gap * -0.01))[0]) + s->pings;
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

/* N of the first four decays. Independent work stands together, so that the processor can overlap its long chains of
 * divisions. */
INLINE void FN(main_row)(const struct step *s, struct FN(cells) out, int base)
{
    struct FN(decays) f = FN(decays_of)(s, base);
    struct device *device = s->device;
    struct FN(moment) host = FN(add_to)(&s->host->m, base, f.of[GAP_HOST], s->length);
    struct FN(moment) dev = FN(add_to)(&device->m, base, f.of[GAP_DEVICE], s->length);
    struct FN(moment) hh = FN(add_to)(&s->pair.forward->m, base, f.of[GAP_HH], s->length);
    struct FN(moment) hphp = FN(add_to)(&s->socket.forward->m, base, f.of[GAP_HPHP], s->length);
    struct FN(moment) jitter = FN(add_to)(s->jitter, base, f.of[GAP_JITTER], s->jitter_value);

    FN(put_1d)(out, H + 3 * base, 3, host);
    if (s->mac != NULL)
        host = FN(add_to)(&s->mac->m, base, f.of[GAP_MAC], s->length);
    FN(put_1d)(out, MI_DIR + 3 * base, 3, host);
    FN(put_1d)(out, HH_JIT + 3 * base, 3, jitter);
    struct FN(joint) joint = FN(join)(&s->pair, base, f.of[GAP_HH], f.of[GAP_HH_CF3], hh);
    FN(put_2d)(out, HH + 7 * base, 7, hh, joint);
    FN(put_2d)(out, HPHP + 7 * base, 7, hphp, FN(join)(&s->socket, base, f.of[GAP_HPHP], f.of[GAP_HPHP_CF3], hphp));

    VEC peers = FN(flush)(FN(load)(device->peers, base) * f.of[GAP_DEVICE]) + s->new_peer;
    VEC sockets = FN(flush)(FN(load)(device->sockets, base) * f.of[GAP_DEVICE]) + s->new_socket;
    FN(store)(device->peers, base, peers);
    FN(store)(device->sockets, base, sockets);
    FN(put_4)(out, DEVICE + 5 * base, 5, dev.w, dev.mean, dev.var, peers);
    FN(put)(out, DEVICE + 5 * base + 4, 5, sockets);
    if (base + N == DECAYS - 1)
        FN(tell)(s, 0, hh.w[N - 1], joint.back[N - 1], f.of[GAP_HH][N - 1]);
}

#if N == 2
enum { FN(FIFTH) = DECAYS - 1 };

INLINE VEC FN(both)(const double *a, const double *b)
{
    return (VEC){a[FN(FIFTH)], b[FN(FIFTH)]};
}

INLINE void FN(store_both)(double *a, double *b, VEC v)
{
    a[FN(FIFTH)] = v[0];
    b[FN(FIFTH)] = v[1];
}

INLINE struct FN(moment) FN(add_to_both)(struct moments *a, struct moments *b, VEC f, VEC v)
{
    struct FN(moment) s = FN(add)(FN(both)(a->w, b->w), FN(both)(a->mean, b->mean), FN(both)(a->var, b->var), f, v);
    FN(store_both)(a->w, b->w, s.w);
    FN(store_both)(a->mean, b->mean, s.mean);
    FN(store_both)(a->var, b->var, s.var);
    return s;
}

/* join() for two channels. Where a channel is its own reverse, what is stored there is what add_to_both() stored. */
INLINE struct FN(joint) FN(join_both)(const struct duo *c, const struct duo *d, VEC f, VEC f_cf3, struct FN(moment) m)
{
    struct way *r = c->reverse, *q = d->reverse;
    FN(store_both)(c->forward->residual, d->forward->residual, m.residual);
    if (!c->reversed && !d->reversed)
        return FN(alone)(m);
    MASK reversed = {-(int64_t)c->reversed, -(int64_t)d->reversed}, self = {-(int64_t)c->self, -(int64_t)d->self};
    MASK alive = reversed & FN(alive)(minus_lambda[FN(FIFTH)] * (VEC){c->reverse_gap, d->reverse_gap});
    VEC r_w = FN(select)(self, m.w, FN(keep_where)(alive, FN(both)(r->m.w, q->m.w) * f));
    VEC r_residual = FN(select)(self, m.residual, FN(keep_where)(alive, FN(both)(r->residual, q->residual) * f));
    VEC cf3 = FN(keep_where)(alive, FN(both)(c->cf3, d->cf3) * f_cf3) + m.residual * r_residual;
    FN(store_both)(r->m.w, q->m.w, r_w);
    FN(store_both)(r->residual, q->residual, r_residual);
    FN(store_both)(c->cf3, d->cf3, cf3);
    return FN(correlate)(m, alive, r_w, FN(both)(r->m.mean, q->m.mean), FN(both)(r->m.var, q->m.var), cf3);
}

/* The last decay; f are its powers of s->gap, two gaps each. */
INLINE void FN(fifth_row)(const struct step *s, struct FN(cells) out, const VEC f[GAPS / 2])
{
    struct device *device = s->device;
    struct way *hh = s->pair.forward, *hphp = s->socket.forward;
    VEC length = {s->length, s->length}, f_jitter = f[GAP_JITTER / 2], jitter_value = {s->jitter_value, s->length};
    if (s->mac == NULL) { /* the other lane repeats jitter's */
        f_jitter[1] = f_jitter[0];
        jitter_value[1] = jitter_value[0];
    }
    struct FN(moment) host = FN(add_to_both)(&s->host->m, &device->m, f[GAP_HOST / 2], length);
    struct FN(moment) jitter = FN(add_to_both)(s->jitter, s->mac != NULL ? &s->mac->m : s->jitter, f_jitter, jitter_value);
    struct FN(moment) channel = FN(add_to_both)(&hh->m, &hphp->m, f[GAP_HH / 2], length);
    struct FN(joint) joint = FN(join_both)(&s->pair, &s->socket, f[GAP_HH / 2], f[GAP_HH_CF3 / 2], channel);

    VEC opened = {s->new_peer, s->new_socket};
    VEC seen = FN(flush)(FN(both)(device->peers, device->sockets) * f[GAP_HOST / 2][1]) + opened;
    FN(store_both)(device->peers, device->sockets, seen);

    enum { MI_DIR_5 = MI_DIR + 12, H_5 = H + 12, HH_5 = HH + 28, HH_JIT_5 = HH_JIT + 12, HPHP_5 = HPHP + 28, DEVICE_5 = DEVICE + 20 };
    FN(put_1d)(out, H_5, DEVICE_5 - H_5, host);
    if (s->mac == NULL) {
        jitter.w[1] = host.w[0];
        jitter.mean[1] = host.mean[0];
        jitter.var[1] = host.var[0];
    }
    FN(put_1d)(out, HH_JIT_5, MI_DIR_5 - HH_JIT_5, jitter);
    FN(put_2d)(out, HH_5, HPHP_5 - HH_5, channel, joint);
    FN(put)(out, DEVICE_5 + 3, 1, seen);
    FN(tell)(s, 1, channel.w[0], joint.back[0], f[GAP_HH / 2][0]);
}
#endif

#undef INLINE
#undef VEC
#undef MASK
#undef BITS
#undef N
#undef FN
#undef TARGET
#undef SQRT
#undef FLOATS
