//go:build linux

package seccomp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// machine runs a program on calls, as the kernel would.
type machine struct{ vm *bpf.VM }

func newMachine(t *testing.T, prog []unix.SockFilter) machine {
	t.Helper()
	ins := make([]bpf.Instruction, len(prog))
	for i, f := range prog {
		ins[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}.Disassemble()
		if _, raw := ins[i].(bpf.RawInstruction); raw {
			t.Fatalf("instruction %d means nothing: %+v", i, f)
		}
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}
}

// run gives the filter's verdict. The virtual machine reads words as they come
// from the network, so they are laid out so.
func (m machine) run(t *testing.T, audit, nr uint32, args [6]uint64) uint32 {
	t.Helper()
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[offNr:], nr)
	binary.BigEndian.PutUint32(b[offArch:], audit)
	for i, a := range args {
		binary.BigEndian.PutUint32(b[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[offArgs+8*i+4:], uint32(a>>32))
	}
	v, err := m.vm.Run(b)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

// expect is what the profile says, rule by rule: the model that programs are
// compared with.
func expect(s *specs.LinuxSeccomp, audit, nr uint32, args [6]uint64) uint32 {
	def, _ := action(s.DefaultAction, s.DefaultErrnoRet)
	listed := false
	for _, n := range s.Architectures {
		a, ok := arches[n]
		if !ok || a.audit != audit {
			continue
		}
		isX32 := a.add != 0
		if audit == 0xc000003e && isX32 != (nr >= x32Bit) {
			continue
		}
		listed = true
		newest, named := uint32(0), map[uint32]bool{}
		result, conditional := def, true
		for i := range s.Syscalls {
			c := &s.Syscalls[i]
			for _, name := range c.Names {
				num, ok := a.number(name)
				if !ok {
					continue
				}
				if num-a.add < armPrivate {
					newest = max(newest, num)
				}
				named[num] = true
				if num != nr || !conditional {
					continue
				}
				ret, _ := action(c.Action, c.ErrnoRet)
				if len(c.Args) == 0 {
					result, conditional = ret, false
					continue
				}
				if result == def && ret != def && holds(c.Args, args, a.bits, name) {
					result = ret
				}
			}
		}
		lets := def>>16 == retAllow>>16 || def>>16 == retLog>>16 || def>>16 == retTrace>>16
		if newest > 0 && nr > newest && !lets && !named[nr] {
			return retErrno | uint32(unix.ENOSYS)
		}
		return result
	}
	if !listed {
		return retKillThread
	}
	return def
}

func inProfile(s *specs.LinuxSeccomp, name string) bool {
	for i := range s.Syscalls {
		for _, n := range s.Syscalls[i].Names {
			if n == name {
				return true
			}
		}
	}
	return false
}

func holds(conds []specs.LinuxSeccompArg, args [6]uint64, bits int, name string) bool {
	seen := map[uint]bool{}
	several := false
	for _, c := range conds {
		several = several || seen[c.Index]
		seen[c.Index] = true
	}
	all, any := true, false
	for _, c := range conds {
		v, want, two := args[c.Index], c.Value, c.ValueTwo
		if bits == 32 || intArgs[name]&(1<<c.Index) != 0 {
			v, want, two = uint64(uint32(v)), uint64(uint32(want)), uint64(uint32(two))
		}
		var ok bool
		switch c.Op {
		case specs.OpEqualTo:
			ok = v == want
		case specs.OpNotEqual:
			ok = v != want
		case specs.OpGreaterThan:
			ok = v > want
		case specs.OpGreaterEqual:
			ok = v >= want
		case specs.OpLessThan:
			ok = v < want
		case specs.OpLessEqual:
			ok = v <= want
		case specs.OpMaskedEqual:
			ok = v&want == two
		}
		all, any = all && ok, any || ok
	}
	if several {
		return any
	}
	return all
}

// check compares program and model for every number and many arguments.
func check(t *testing.T, s *specs.LinuxSeccomp, goarch string) []unix.SockFilter {
	t.Helper()
	prog, err := compile(s, goarch)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, prog)
	rnd := rand.New(rand.NewPCG(1, 2))
	interesting := []uint64{0, 1, 2, 37, 38, 39, 40, 41, 0x20008, 0xffffffff, 0x100000028, 0x7e020000, 1 << 63, ^uint64(0)}
	for _, c := range s.Syscalls {
		for _, a := range c.Args {
			interesting = append(interesting, a.Value, a.Value-1, a.Value+1, a.ValueTwo, a.Value|1<<40)
		}
	}
	audits := []uint32{0xc000003e, 0x40000003, 0xc00000b7, 0x40000028, 0xdeadbeef}
	var nrs []uint32
	for nr := uint32(0); nr < 620; nr++ {
		nrs = append(nrs, nr, nr|x32Bit)
	}
	for d := uint32(0); d < 8; d++ {
		nrs = append(nrs, armPrivate-2+d)
	}
	nrs = append(nrs, 1000, x32Bit-1, 0x7fffffff, 0x80000000, 0xffffffff)
	for _, audit := range audits {
		for _, nr := range nrs {
			for try := range 3 {
				var args [6]uint64
				for i := range args {
					args[i] = interesting[rnd.IntN(len(interesting))]
					if try == 2 {
						args[i] = rnd.Uint64()
					}
				}
				got, want := m.run(t, audit, nr, args), expect(s, audit, nr, args)
				if got != want {
					t.Fatalf("arch %#x call %#x args %#x: verdict %#x, want %#x", audit, nr, args, got, want)
				}
			}
		}
	}
	return prog
}

func TestDefaultProfile(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE", "CAP_NET_RAW"}, {"CAP_SYS_TIME", "CAP_SYS_MODULE", "CAP_BPF"}} {
		s, err := Default(caps)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range []struct {
			goarch string
			list   []specs.Arch
		}{
			{"amd64", []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}},
			{"arm64", []specs.Arch{specs.ArchAARCH64, specs.ArchARM}},
		} {
			c := *s
			c.Architectures = other.list
			prog := check(t, &c, other.goarch)
			t.Logf("%s %v: %d instructions", other.goarch, caps, len(prog))
			if len(prog) > 1000 {
				t.Errorf("%d instructions: every container start pays for each", len(prog))
			}
		}
	}
}

// TestVsockIsRefused: a container's socket(AF_VSOCK) would be a way to the
// host, also where the upper half of the register is not zero, which the
// kernel does not look at.
func TestVsockIsRefused(t *testing.T) {
	s, err := Default([]string{"CAP_NET_ADMIN"})
	if err != nil {
		t.Fatal(err)
	}
	c := *s
	c.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	prog, err := compile(&c, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, prog)
	socket, _ := arches[specs.ArchX86_64].ptr().number("socket")
	for family, want := range map[uint64]uint32{
		unix.AF_INET: retAllow, unix.AF_UNIX: retAllow, unix.AF_NETLINK: retAllow, 39: retAllow, 44: retAllow,
		unix.AF_VSOCK: retErrno | 1, unix.AF_ALG: retErrno | 1,
		1<<32 | unix.AF_VSOCK: retErrno | 1, 0xffffffff<<32 | unix.AF_ALG: retErrno | 1,
	} {
		for _, nr := range []uint32{socket, socket | x32Bit} {
			if got := m.run(t, 0xc000003e, nr, [6]uint64{family, 1, 0}); got != want {
				t.Errorf("socket(%#x) by call %#x: %#x, want %#x", family, nr, got, want)
			}
		}
	}
}

func (a arch) ptr() *arch { return &a }

func TestOperatorsAndActions(t *testing.T) {
	errno := uint(99)
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual}
	rnd := rand.New(rand.NewPCG(3, 4))
	values := []uint64{0, 1, 5, 0xffffffff, 1 << 32, 5<<32 | 7, ^uint64(0)}
	names := []string{"read", "write", "openat", "close", "mmap", "futex", "personality", "ioctl", "kill", "clone"}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace, specs.ActLog}
	for round := range 60 {
		s := &specs.LinuxSeccomp{
			DefaultAction: actions[rnd.IntN(len(actions))],
			Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86},
		}
		if round%2 == 0 {
			s.Architectures = append(s.Architectures, specs.ArchX32)
		}
		for range 12 {
			c := specs.LinuxSyscall{Names: []string{names[rnd.IntN(len(names))], "no_such_call"}, Action: actions[rnd.IntN(len(actions))]}
			if c.Action == specs.ActErrno {
				c.ErrnoRet = &errno
			}
			for range rnd.IntN(4) {
				c.Args = append(c.Args, specs.LinuxSeccompArg{
					Index: uint(rnd.IntN(6)), Op: ops[rnd.IntN(len(ops))],
					Value: values[rnd.IntN(len(values))], ValueTwo: values[rnd.IntN(len(values))],
				})
			}
			s.Syscalls = append(s.Syscalls, c)
		}
		check(t, s, "amd64")
	}
}

func TestRefusals(t *testing.T) {
	arg := func(a specs.LinuxSeccompArg) []specs.LinuxSyscall {
		return []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{a}}}
	}
	big, one := uint(70000), uint(1)
	for name, c := range map[string]struct {
		s     specs.LinuxSeccomp
		class errdefs.Class
	}{
		"unknown action":       {specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_FOO"}, errdefs.Invalid},
		"notify":               {specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, errdefs.Unimplemented},
		"listener":             {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/x"}, errdefs.Unimplemented},
		"unknown architecture": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"amd64"}}, errdefs.Invalid},
		"errno too large":      {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &big}, errdefs.Invalid},
		"errno for allow":      {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: &one}, errdefs.Invalid},
		"unknown operator":     {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: arg(specs.LinuxSeccompArg{Op: "SCMP_CMP_X"})}, errdefs.Invalid},
		"index out of range":   {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: arg(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo})}, errdefs.Invalid},
		"unknown flag":         {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NEW_LISTENER"}}, errdefs.Unimplemented},
	} {
		if _, err := Compile(&c.s); errdefs.ClassOf(err) != c.class {
			t.Errorf("%s: %v, want class %s", name, err, c.class)
		}
	}
}

func TestLoadOfDockersJSON(t *testing.T) {
	const profile = `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
		"archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},{"architecture":"SCMP_ARCH_AARCH64","subArchitectures":[]}],
		"syscalls":[{"names":["read","write","exit_group"],"action":"SCMP_ACT_ALLOW"},
		{"name":"reboot","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_BOOT"]}},
		{"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"99.0"}}]}`
	for caps, boot := range map[string]bool{"CAP_CHOWN": false, "CAP_SYS_BOOT": true} {
		s, err := Load([]byte(profile), []string{caps})
		if err != nil {
			t.Fatal(err)
		}
		if got := inProfile(s, "reboot"); got != boot {
			t.Errorf("with %s: reboot allowed = %t", caps, got)
		}
		if inProfile(s, "ptrace") {
			t.Error("the rule for a later kernel is in")
		}
		if _, err := Compile(s); err != nil {
			t.Error(err)
		}
	}
	if _, err := Load([]byte("{"), nil); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("a broken profile: %v", err)
	}
}

func TestCacheTellsProfilesApart(t *testing.T) {
	s := specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}}
	a, err := Compile(&s)
	if err != nil {
		t.Fatal(err)
	}
	same := s
	same.Syscalls = []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}
	b, _ := Compile(&same)
	if a != b {
		t.Error("the same content is compiled again")
	}
	same.Syscalls = []specs.LinuxSyscall{{Names: []string{"write"}, Action: specs.ActAllow}}
	if c, _ := Compile(&same); string(c.Bytes) == string(a.Bytes) {
		t.Error("another profile has the same program")
	}
}

// TestTables holds the generated numbers against known ones.
func TestTables(t *testing.T) {
	for _, c := range []struct {
		arch specs.Arch
		name string
		nr   uint32
	}{
		{specs.ArchX86_64, "read", 0}, {specs.ArchX86_64, "openat2", 437}, {specs.ArchX86, "read", 3}, {specs.ArchX86, "socketcall", 102},
		{specs.ArchX32, "read", x32Bit}, {specs.ArchX32, "ioctl", x32Bit + 514}, {specs.ArchX32, "execve", x32Bit + 520},
		{specs.ArchAARCH64, "read", 63}, {specs.ArchAARCH64, "clone3", 435}, {specs.ArchARM, "read", 3}, {specs.ArchARM, "set_tls", 0xf0005},
	} {
		a := arches[c.arch]
		if nr, ok := a.number(c.name); !ok || nr != c.nr {
			t.Errorf("%s %s = %d (%t), want %d", c.arch, c.name, nr, ok, c.nr)
		}
	}
	x := arches[specs.ArchX32]
	if _, ok := x.number("uselib"); ok {
		t.Error("x32 has uselib")
	}
	for n, a := range arches {
		for i := 1; i < len(a.table); i++ {
			if strings.Compare(a.table[i-1].name, a.table[i].name) >= 0 {
				t.Fatal(fmt.Sprint(n, " is not sorted at ", a.table[i].name))
			}
		}
	}
}

func BenchmarkCompileCached(b *testing.B) {
	s, err := Default(nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Compile(s); err != nil {
			b.Fatal(err)
		}
	}
}
