//go:build linux

package cgroup

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func p[T any](v T) *T { return &v }

func TestSettings(t *testing.T) {
	throttle := func(rate uint64) specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 8, 16
		return d
	}
	for name, c := range map[string]struct {
		r    specs.LinuxResources
		want []setting
	}{
		"nothing": {specs.LinuxResources{}, nil},
		"memory with swap": {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(100)), Swap: p(int64(250)), Reservation: p(int64(50))}},
			[]setting{{"memory.swap.max", "150"}, {"memory.max", "100"}, {"memory.low", "50"}}},
		"unlimited": {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(-1)), Swap: p(int64(-1))}, Pids: &specs.LinuxPids{Limit: p(int64(-1))}},
			[]setting{{"memory.swap.max", "max"}, {"memory.max", "max"}, {"pids.max", "max"}}},
		"no swap":    {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(100)), Swap: p(int64(100))}}, []setting{{"memory.swap.max", "0"}, {"memory.max", "100"}}},
		"cpu":        {specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(1024)), Quota: p(int64(50000)), Period: p(uint64(100000)), Cpus: "0-1", Mems: "0"}}, []setting{{"cpu.weight", "39"}, {"cpu.max", "50000 100000"}, {"cpuset.cpus", "0-1"}, {"cpuset.mems", "0"}}},
		"quota only": {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(50000))}}, []setting{{"cpu.max", "50000"}}},
		"period":     {specs.LinuxResources{CPU: &specs.LinuxCPU{Period: p(uint64(5000))}}, []setting{{"cpu.max", "max 5000"}}},
		"no quota":   {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(-1))}}, []setting{{"cpu.max", "max"}}},
		"pids":       {specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(7))}}, []setting{{"pids.max", "7"}}},
		"io": {specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			Weight: p(uint16(500)), ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{throttle(1000)}, ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{throttle(0)}}},
			[]setting{{"io.weight", "default 4950"}, {"io.max", "8:16 rbps=1000"}, {"io.max", "8:16 wiops=max"}}},
		"huge pages": {specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4096}}}, []setting{{"hugetlb.2MB.max", "4096"}}},
		"unified":    {specs.LinuxResources{Unified: map[string]string{"memory.high": "1\n"}}, []setting{{"memory.high", "1"}}},
	} {
		got, err := settings(&c.r)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v %v, want %v", name, got, err, c.want)
		}
	}
	for name, r := range map[string]specs.LinuxResources{
		"swap below memory":   {Memory: &specs.LinuxMemory{Limit: p(int64(100)), Swap: p(int64(50))}},
		"swap without memory": {Memory: &specs.LinuxMemory{Swap: p(int64(50))}},
		"weight out of range": {BlockIO: &specs.LinuxBlockIO{Weight: p(uint16(5))}},
		"path in unified":     {Unified: map[string]string{"../memory.max": "1"}},
		"control by unified":  {Unified: map[string]string{"cgroup.procs": "1"}},
	} {
		if _, err := settings(&r); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 0, 1: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := Weight(shares); got != want {
			t.Errorf("Weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

// runDevices interprets a device program.
func runDevices(t *testing.T, prog []insn, typ, acc, major, minor int32) bool {
	t.Helper()
	var r [11]int32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(in.off)
			}
		}
		switch in.code {
		case opLoadWord:
			r[in.dst] = map[int16]int32{0: acc<<16 | typ, 4: major, 8: minor}[in.off]
		case opMovImm:
			r[in.dst] = in.imm
		case opMovReg32:
			r[in.dst] = r[in.src]
		case opAndImm32:
			r[in.dst] &= in.imm
		case opRshImm32:
			r[in.dst] = int32(uint32(r[in.dst]) >> in.imm)
		case opJne:
			jump(r[in.dst] != in.imm)
		case opJneReg:
			jump(r[in.dst] != r[in.src])
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(r[in.dst] == in.imm)
		case opExit:
			return r[0] == 1
		default:
			t.Fatalf("unknown instruction %+v", in)
		}
	}
	t.Fatal("the program runs off its end")
	return false
}

// TestDeviceProgram compares programs with what the rules say: the last one
// that matches decides. A denying rule matches what it has any access of, an
// allowing one what it has all accesses of.
func TestDeviceProgram(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	types := []string{"", "a", "c", "b"}
	accesses := []string{"r", "w", "m", "rw", "rwm", "rm"}
	num := func() *int64 {
		if n := rnd.IntN(5) - 1; n >= 0 {
			return p(int64(n))
		} else if rnd.IntN(2) == 0 {
			return p(int64(-1))
		}
		return nil
	}
	for range 300 {
		var rules []specs.LinuxDeviceCgroup
		for range rnd.IntN(6) {
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: rnd.IntN(2) == 0, Type: types[rnd.IntN(4)], Access: accesses[rnd.IntN(6)], Major: num(), Minor: num()})
		}
		prog, err := deviceProgram(rules)
		if err != nil {
			t.Fatal(err)
		}
		for typ := int32(1); typ <= 2; typ++ {
			for acc := int32(1); acc <= 7; acc++ {
				for major := range int32(4) {
					for minor := range int32(4) {
						want := false
						for _, r := range rules {
							m, _ := access(r.Access)
							matches := r.Type == "" || r.Type == "a" || r.Type == "c" && typ == devChar || r.Type == "b" && typ == devBlock
							matches = matches && (r.Major == nil || *r.Major < 0 || *r.Major == int64(major)) && (r.Minor == nil || *r.Minor < 0 || *r.Minor == int64(minor))
							if matches && (r.Allow && acc&m == acc || !r.Allow && acc&m != 0) {
								want = r.Allow
							}
						}
						if got := runDevices(t, prog, typ, acc, major, minor); got != want {
							t.Fatalf("rules %+v: type %d access %d device %d:%d: %t, want %t", rules, typ, acc, major, minor, got, want)
						}
					}
				}
			}
		}
	}
	for name, r := range map[string]specs.LinuxDeviceCgroup{
		"type":    {Type: "x", Access: "r"},
		"access":  {Access: "q"},
		"nothing": {},
		"number":  {Access: "r", Major: p(int64(1) << 40)},
	} {
		if _, err := deviceProgram([]specs.LinuxDeviceCgroup{r}); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}

func TestParsers(t *testing.T) {
	if v, ok := keyed([]byte("populated 1\nfrozen 0\n"), "frozen"); v != 0 || !ok {
		t.Error("frozen", v, ok)
	}
	if _, ok := keyed([]byte("oom_killer 3\n"), "oom_kill"); ok {
		t.Error("a key matches another's beginning")
	}
	if parseUint([]byte("max")) != Unlimited || parseUint([]byte("42")) != 42 {
		t.Error("parseUint")
	}
	got := parseIO([]byte("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:1\n8:16 rbytes=9\n"))
	want := []IOStats{{8, 0, 1, 2, 3, 4}, {8, 16, 9, 0, 0, 0}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("io.stat: %+v", got)
	}
}

// open gives a tree of the test's own on the machine's cgroup2.
func open(t *testing.T) *Tree {
	t.Helper()
	need := func(ok bool, remedy string) {
		if ok {
			return
		}
		if os.Getenv("CI_REQUIRE_KERNEL") == "1" {
			t.Fatal(remedy)
		}
		t.Skip(remedy)
	}
	need(os.Geteuid() == 0, "needs root: run as root, e.g. with sudo")
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		parent := "dhow-test-" + strings.ToLower(t.Name())
		tree, err := Open(root, parent)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = tree.Close()
			if err := os.Remove(filepath.Join(root, parent)); err != nil {
				t.Error(err)
			}
		})
		return tree
	}
	need(false, "no cgroup2 file system at /sys/fs/cgroup: mount one")
	return nil
}

func TestOpenOfAnotherFileSystem(t *testing.T) {
	if _, err := Open(t.TempDir(), "x"); err == nil {
		t.Error("a plain directory is taken for cgroup2")
	}
}

func TestLife(t *testing.T) {
	tree := open(t)
	c, err := tree.Create("one")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if again, err := tree.Create("one"); err != nil {
		t.Errorf("an empty cgroup of the same name: %v", err)
	} else {
		_ = again.Close()
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: c.FD()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if pids, err := c.Processes(); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("processes %v %v", pids, err)
	}
	if _, err := tree.Create("one"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a cgroup with processes in it is taken over: %v", err)
	}
	for _, frozen := range []bool{true, false} {
		if err := c.Freeze(t.Context(), frozen); err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Frozen(); got != frozen {
			t.Errorf("frozen = %t, want %t", got, frozen)
		}
	}
	// A container may make cgroups of its own.
	if err := os.MkdirAll(filepath.Join(c.Path(), "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stats(); err != nil {
		t.Error(err)
	}
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := c.AwaitEmpty(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, err := os.Stat(c.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestDevicesOnTheKernel(t *testing.T) {
	tree := open(t)
	c, err := tree.Create("dev")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer func() {
		if err := c.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	rules := []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Major: p(int64(1)), Minor: p(int64(3)), Access: "rw"}}
	if err := c.Limit(&specs.LinuxResources{Devices: rules}); err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]bool{"/dev/null": true, "/dev/zero": false} {
		cmd := exec.Command("head", "-c", "0", device)
		cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: c.FD()}
		if err := cmd.Run(); (err == nil) != want {
			t.Errorf("read of %s: %v", device, err)
		}
	}
	if err := c.Limit(&specs.LinuxResources{Devices: rules}); !errdefs.Is(err, errdefs.Unimplemented) {
		t.Errorf("a second set of rules: %v", err)
	}
}

// TestLimitsOnTheKernel needs the controllers; where another hierarchy has
// them it checks that a limit is refused and not forgotten.
func TestLimitsOnTheKernel(t *testing.T) {
	tree := open(t)
	c, err := tree.Create("limits")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer func() {
		if err := c.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	for _, l := range []struct {
		controller, file, want string
		r                      specs.LinuxResources
	}{
		{"memory", "memory.max", "67108864", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20)), Swap: p(int64(64 << 20))}}},
		{"cpu", "cpu.max", "50000 100000", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(50000)), Period: p(uint64(100000))}}},
		{"pids", "pids.max", "42", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(42))}}},
	} {
		err := c.Limit(&l.r)
		if !tree.Has(l.controller) {
			t.Logf("the %s controller is not available here", l.controller)
			if !errdefs.Is(err, errdefs.Invalid) {
				t.Errorf("%s without its controller: %v", l.file, err)
			}
			continue
		}
		b, rerr := c.read(l.file)
		if err != nil || rerr != nil || strings.TrimSpace(string(b)) != l.want {
			t.Errorf("%s = %q, want %q (%v, %v)", l.file, b, l.want, err, rerr)
		}
	}
	if tree.Has("memory") {
		cmd := exec.Command("sh", "-c", "exec tail /dev/zero")
		cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: c.FD()}
		if err := cmd.Run(); err == nil {
			t.Error("a process uses all memory in spite of the limit")
		}
		if n, err := c.OOMKills(); err != nil || n == 0 {
			t.Errorf("%d OOM kills, %v", n, err)
		}
	}
}
