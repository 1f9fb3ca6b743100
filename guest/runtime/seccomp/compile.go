//go:build linux

package seccomp

import (
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"sync"

	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Program is a filter made ready for seccomp(2).
type Program struct {
	Bytes []byte // instructions, struct sock_filter each, in the machine's byte order
	Flags uint64 // SECCOMP_FILTER_FLAG_*
}

// maxInstructions is the kernel's limit (BPF_MAXINSNS).
const maxInstructions = 4096

// cache holds programs by the content of what they were compiled from.
var cache = struct {
	sync.Mutex
	m map[string]*Program
}{m: map[string]*Program{}}

const maxCached = 64

// Compile makes the program for a profile. What it cannot do is an error of
// class Unimplemented, what makes no sense one of class Invalid. The result is
// cached by content and shared: it must not be changed.
//
// The meaning follows libseccomp as the OCI runtimes use it. Names that an
// architecture does not have are skipped. Of several rules for one call an
// unconditional one wins over those with arguments, else the first that
// matches counts. Rules with several conditions on one argument mean any of
// these. A call newer than all that the profile names gets ENOSYS in place of
// the default error, so that programs fall back to older calls. Unlike there,
// conditions on arguments that the kernel takes as int (the family of socket)
// look at those 32 bits only: else a set bit above them would get past.
func Compile(s *specs.LinuxSeccomp) (*Program, error) {
	key := content(s)
	cache.Lock()
	p := cache.m[key]
	cache.Unlock()
	if p != nil {
		return p, nil
	}
	insns, err := compile(s, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	p = &Program{Bytes: make([]byte, 0, 8*len(insns))}
	for _, i := range insns {
		p.Bytes = binary.NativeEndian.AppendUint16(p.Bytes, i.Code)
		p.Bytes = append(p.Bytes, i.Jt, i.Jf)
		p.Bytes = binary.NativeEndian.AppendUint32(p.Bytes, i.K)
	}
	if p.Flags, err = flags(s.Flags); err != nil {
		return nil, err
	}
	cache.Lock()
	defer cache.Unlock()
	if len(cache.m) >= maxCached {
		clear(cache.m)
	}
	cache.m[key] = p
	return p, nil
}

// content is a string that differs wherever profiles differ.
func content(s *specs.LinuxSeccomp) string {
	b := make([]byte, 0, 16<<10)
	str := func(v string) {
		b = binary.AppendUvarint(b, uint64(len(v)))
		b = append(b, v...)
	}
	ret := func(v *uint) {
		if v == nil {
			b = append(b, 0)
			return
		}
		b = binary.AppendUvarint(append(b, 1), uint64(*v))
	}
	str(string(s.DefaultAction))
	ret(s.DefaultErrnoRet)
	str(s.ListenerPath)
	b = binary.AppendUvarint(b, uint64(len(s.Architectures)))
	for _, a := range s.Architectures {
		str(string(a))
	}
	b = binary.AppendUvarint(b, uint64(len(s.Flags)))
	for _, f := range s.Flags {
		str(string(f))
	}
	for i := range s.Syscalls {
		c := &s.Syscalls[i]
		b = binary.AppendUvarint(b, uint64(len(c.Names)))
		for _, n := range c.Names {
			str(n)
		}
		str(string(c.Action))
		ret(c.ErrnoRet)
		b = binary.AppendUvarint(b, uint64(len(c.Args)))
		for _, a := range c.Args {
			b = binary.AppendUvarint(b, uint64(a.Index))
			b = binary.AppendUvarint(b, a.Value)
			b = binary.AppendUvarint(b, a.ValueTwo)
			str(string(a.Op))
		}
	}
	return string(b)
}

func flags(l []specs.LinuxSeccompFlag) (v uint64, err error) {
	if len(l) == 0 {
		// As runc does: no mitigation that costs speed comes with a filter.
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	for _, f := range l {
		switch f {
		case specs.LinuxSeccompFlagLog:
			v |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			v |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // one thread is left after execve
		default:
			return 0, errdefs.New(errdefs.Unimplemented, "seccomp flag %q is not supported", f)
		}
	}
	return v, nil
}

// Values of a filter's return (linux/seccomp.h).
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

func action(a specs.LinuxSeccompAction, ret *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if ret != nil {
		if *ret > 0xffff {
			return 0, errdefs.New(errdefs.Invalid, "seccomp: errnoRet %d is out of range", *ret)
		}
		data = uint32(*ret)
	}
	switch a {
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	}
	if ret != nil {
		return 0, errdefs.New(errdefs.Invalid, "seccomp: errnoRet makes no sense for action %s", a)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActNotify:
		return 0, errdefs.New(errdefs.Unimplemented, "seccomp: SCMP_ACT_NOTIFY is not supported")
	}
	return 0, errdefs.New(errdefs.Invalid, "seccomp: unknown action %q", a)
}

// rule is a conditional verdict: all conds must hold.
type rule struct {
	ret   uint32
	conds []specs.LinuxSeccompArg
}

// verdict is what a system call gets: rules in order, then ret.
type verdict struct {
	ret   uint32
	rules []rule
}

// span is a run of numbers, up to the next span's, with one verdict.
type span struct {
	from uint32
	v    *verdict
	arch *arch
	name string
}

// natives says which audit architectures a machine has first.
var natives = map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}

func compile(s *specs.LinuxSeccomp, goarch string) ([]unix.SockFilter, error) {
	if s.ListenerPath != "" || s.ListenerMetadata != "" {
		return nil, errdefs.New(errdefs.Unimplemented, "seccomp: listeners are not supported")
	}
	def, err := action(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	names := slices.Clone(s.Architectures)
	if len(names) == 0 {
		names = []specs.Arch{natives[goarch]}
	}
	// Sections by audit arch, in the order of the list: x32 shares x86-64's.
	var order []uint32
	sections := map[uint32][]span{}
	x32 := false
	for _, n := range names {
		a, ok := arches[n]
		if !ok {
			if strings.HasPrefix(string(n), "SCMP_ARCH_") {
				continue // an architecture that this machine cannot execute
			}
			return nil, errdefs.New(errdefs.Invalid, "seccomp: unknown architecture %q", n)
		}
		if a.add == x32Bit && slices.Contains(names, specs.ArchX32) {
			x32 = true
		}
		spans, err := spansOf(s, &a, def)
		if err != nil {
			return nil, err
		}
		if _, ok := sections[a.audit]; !ok {
			order = append(order, a.audit)
		}
		sections[a.audit] = append(sections[a.audit], spans...)
	}
	kill := &verdict{ret: retKillThread}
	for audit, l := range sections {
		if audit == arches[specs.ArchX86_64].audit && !x32 {
			l = append(l, span{from: x32Bit, v: kill})
		}
		slices.SortStableFunc(l, func(a, b span) int { return int(int64(a.from) - int64(b.from)) })
		if l[0].from != 0 {
			l = append([]span{{from: 0, v: kill}}, l...)
		}
		sections[audit] = merge(l)
	}
	b := &builder{}
	prog := []unix.SockFilter{load(offArch)}
	for _, audit := range order {
		body := append([]unix.SockFilter{load(offNr)}, b.tree(sections[audit])...)
		prog = append(prog, ifElse(unix.BPF_JEQ, audit, body)...)
	}
	prog = append(prog, returns(retKillThread)) // no architecture of the profile
	if b.err != nil {
		return nil, b.err
	}
	if len(prog) > maxInstructions {
		return nil, errdefs.New(errdefs.Invalid, "seccomp: the profile needs %d instructions, the kernel takes %d", len(prog), maxInstructions)
	}
	return prog, nil
}

// spansOf computes the verdicts of an architecture, by number.
func spansOf(s *specs.LinuxSeccomp, a *arch, def uint32) ([]span, error) {
	verdicts := map[uint32]*verdict{}
	nameOf := map[uint32]string{}
	final := map[uint32]bool{} // an unconditional rule has been seen
	newest := uint32(0)
	for i := range s.Syscalls {
		c := &s.Syscalls[i]
		ret, err := action(c.Action, c.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for j := range c.Args {
			if c.Args[j].Index > 5 {
				return nil, errdefs.New(errdefs.Invalid, "seccomp: argument index %d is out of range", c.Args[j].Index)
			}
		}
		for _, name := range c.Names {
			nr, ok := a.number(name)
			if !ok {
				continue
			}
			if nr-a.add < armPrivate {
				newest = max(newest, nr-a.add)
			}
			v := verdicts[nr]
			if v == nil {
				v = &verdict{ret: def}
				verdicts[nr], nameOf[nr] = v, name
			}
			switch {
			case final[nr]:
			case len(c.Args) == 0:
				v.ret, v.rules, final[nr] = ret, nil, true
			case ret == def:
			default:
				v.rules = append(v.rules, split(ret, c.Args)...)
			}
		}
	}
	// Calls that came after the profile was written. A default that lets calls
	// through holds for these too, and a tracer may know them.
	newer := &verdict{ret: def}
	switch lets := def & 0xffff0000; {
	case newest == 0, lets == retAllow, lets == retLog, lets == retTrace:
	default:
		newer = &verdict{ret: retErrno | uint32(unix.ENOSYS)}
	}
	none := &verdict{ret: def}
	var l []span
	nrs := make([]uint32, 0, len(verdicts))
	for nr := range verdicts {
		nrs = append(nrs, nr)
	}
	slices.Sort(nrs)
	next := a.add
	gap := func(to uint32) {
		if next < to {
			l = append(l, span{from: next, v: none, arch: a})
		}
	}
	past := false
	for _, nr := range nrs {
		if !past && nr > a.add+newest {
			l, next, past = append(l, span{from: next, v: newer, arch: a}), nr, true
		} else if past {
			if next < nr {
				l = append(l, span{from: next, v: newer, arch: a})
			}
		} else {
			gap(nr)
		}
		l = append(l, span{from: nr, v: verdicts[nr], arch: a, name: nameOf[nr]})
		next = nr + 1
	}
	return append(l, span{from: next, v: newer, arch: a}), nil
}

// split makes the rules of one list of conditions. libseccomp takes one
// condition per argument; the runtimes turn several into alternatives.
func split(ret uint32, args []specs.LinuxSeccompArg) []rule {
	var count [6]int
	several := false
	for _, a := range args {
		count[a.Index]++
		several = several || count[a.Index] > 1
	}
	if !several {
		return []rule{{ret, args}}
	}
	rules := make([]rule, len(args))
	for i := range args {
		rules[i] = rule{ret, args[i : i+1]}
	}
	return rules
}

// merge joins neighbours with the same plain verdict.
func merge(l []span) []span {
	out := l[:1:1]
	for _, s := range l[1:] {
		last := out[len(out)-1]
		if s.from == last.from {
			continue
		}
		if len(s.v.rules)+len(last.v.rules) == 0 && s.v.ret == last.v.ret {
			continue
		}
		out = append(out, s)
	}
	return out
}
