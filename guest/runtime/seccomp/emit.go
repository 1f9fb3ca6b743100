//go:build linux

package seccomp

import (
	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h), little-endian machines.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func returns(v uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v}
}

// ifElse runs then if the comparison holds and what follows it if not. then
// ends in returns on every path.
func ifElse(op uint16, k uint32, then []unix.SockFilter) []unix.SockFilter {
	if len(then) <= 255 {
		return append([]unix.SockFilter{{Code: unix.BPF_JMP | op | unix.BPF_K, Jf: uint8(len(then)), K: k}}, then...)
	}
	// Conditional jumps reach 255 instructions, plain ones any number.
	return append([]unix.SockFilter{
		{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: 1, K: k},
		{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(then))},
	}, then...)
}

// builder emits the tests. err is the first that went wrong.
type builder struct{ err error }

// tree finds the span of the number in the accumulator by halving: the filter
// runs at every system call. Every path ends in a return.
func (b *builder) tree(l []span) []unix.SockFilter {
	if len(l) == 1 {
		return b.verdict(&l[0])
	}
	mid := len(l) / 2
	high := b.tree(l[mid:])
	return append(ifElse(unix.BPF_JGE, l[mid].from, high), b.tree(l[:mid])...)
}

func (b *builder) verdict(s *span) []unix.SockFilter {
	var p []unix.SockFilter
	for i := range s.v.rules {
		p = append(p, b.rule(&s.v.rules[i], s)...)
	}
	return append(p, returns(s.v.ret))
}

// intArgs are the arguments that the kernel takes as 32 bits, as a bit set by
// the name of the call, where docker's profiles have conditions on them.
var intArgs = map[string]uint{
	"socket":      1<<0 | 1<<1 | 1<<2,
	"socketpair":  1<<0 | 1<<1 | 1<<2,
	"personality": 1 << 0,
	"prctl":       1 << 0,
	"ioctl":       1<<0 | 1<<1,
	"fcntl":       1<<0 | 1<<1,
	"keyctl":      1 << 0,
	"bpf":         1 << 0,
	"setsockopt":  1<<0 | 1<<1 | 1<<2,
}

// Targets of jumps inside of a rule, patched once its length is known.
const (
	toNext = 0
	toFail = 254
	toPass = 255
)

// rule tests all conditions and returns if they hold, else falls through.
func (b *builder) rule(r *rule, s *span) []unix.SockFilter {
	var p []unix.SockFilter
	for i := range r.conds {
		c := &r.conds[i]
		wide := s.arch.bits == 64 && intArgs[s.name]&(1<<c.Index) == 0
		test := b.cond(c, wide)
		for j := range test { // a pass is the end of this condition
			in := &test[j]
			if in.Code&7 == unix.BPF_JMP {
				if in.Jt == toPass {
					in.Jt = uint8(len(test) - j - 1)
				}
				if in.Jf == toPass {
					in.Jf = uint8(len(test) - j - 1)
				}
			}
		}
		p = append(p, test...)
	}
	p = append(p, returns(r.ret))
	if len(p) > 200 && b.err == nil {
		b.err = errdefs.New(errdefs.Invalid, "seccomp: a rule has too many conditions")
	}
	for j := range p {
		in := &p[j]
		if in.Code&7 == unix.BPF_JMP {
			if in.Jt == toFail {
				in.Jt = uint8(len(p) - j - 1)
			}
			if in.Jf == toFail {
				in.Jf = uint8(len(p) - j - 1)
			}
		}
	}
	return p
}

// cond tests one argument, in halves: the machine of classic BPF has 32 bits.
// Where it does not jump to toFail, it ends at toPass.
func (b *builder) cond(c *specs.LinuxSeccompArg, wide bool) []unix.SockFilter {
	low, high := load(offArgs+8*uint32(c.Index)), load(offArgs+8*uint32(c.Index)+4)
	value := c.Value
	if c.Op == specs.OpMaskedEqual {
		value = c.ValueTwo
	}
	vl, vh := uint32(value), uint32(value>>32)
	jump := func(op uint16, k uint32, jt, jf uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: jt, Jf: jf, K: k}
	}
	and := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: k}
	}
	const eq, gt, ge = unix.BPF_JEQ, unix.BPF_JGT, unix.BPF_JGE
	var hi, lo []unix.SockFilter
	switch c.Op {
	case specs.OpEqualTo:
		hi = []unix.SockFilter{high, jump(eq, vh, toNext, toFail)}
		lo = []unix.SockFilter{low, jump(eq, vl, toNext, toFail)}
	case specs.OpNotEqual:
		hi = []unix.SockFilter{high, jump(eq, vh, toNext, toPass)}
		lo = []unix.SockFilter{low, jump(eq, vl, toFail, toNext)}
	case specs.OpGreaterThan:
		hi = []unix.SockFilter{high, jump(gt, vh, toPass, toNext), jump(eq, vh, toNext, toFail)}
		lo = []unix.SockFilter{low, jump(gt, vl, toNext, toFail)}
	case specs.OpGreaterEqual:
		hi = []unix.SockFilter{high, jump(gt, vh, toPass, toNext), jump(eq, vh, toNext, toFail)}
		lo = []unix.SockFilter{low, jump(ge, vl, toNext, toFail)}
	case specs.OpLessThan:
		hi = []unix.SockFilter{high, jump(gt, vh, toFail, toNext), jump(eq, vh, toNext, toPass)}
		lo = []unix.SockFilter{low, jump(ge, vl, toFail, toNext)}
	case specs.OpLessEqual:
		hi = []unix.SockFilter{high, jump(gt, vh, toFail, toNext), jump(eq, vh, toNext, toPass)}
		lo = []unix.SockFilter{low, jump(gt, vl, toFail, toNext)}
	case specs.OpMaskedEqual:
		hi = []unix.SockFilter{high, and(uint32(c.Value >> 32)), jump(eq, vh, toNext, toFail)}
		lo = []unix.SockFilter{low, and(uint32(c.Value)), jump(eq, vl, toNext, toFail)}
	default:
		if b.err == nil {
			b.err = errdefs.New(errdefs.Invalid, "seccomp: unknown operator %q", c.Op)
		}
	}
	if !wide {
		return lo
	}
	return append(hi, lo...)
}
