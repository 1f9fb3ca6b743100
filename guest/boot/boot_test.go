//go:build linux

package boot

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dhow/proto/control"
)

func TestBootFileFollowsTheContract(t *testing.T) {
	want := control.Boot{
		Protocol: control.Protocol, Machine: "work", Time: time.Unix(1700000000, 5).UTC(), Debug: true,
		Network: &control.Network{MAC: "5a:94:ef:e4:0c:ee", Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: "192.168.127.1", MTU: 65520},
	}
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	b, err := parseBootFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if b.Machine != want.Machine || !b.Time.Equal(want.Time) || b.Debug != want.Debug ||
		*b.Network != (bootUplink{MAC: want.Network.MAC, Address: want.Network.Address, Gateway: want.Network.Gateway, DNS: want.Network.DNS, MTU: want.Network.MTU}) {
		t.Errorf("parsed %+v of %s", b, raw)
	}
	if serialRoot != control.SerialRoot || serialData != control.SerialData {
		t.Error("the disks' serial numbers differ from the contract's")
	}
	if _, err := parseBootFile([]byte("{")); err == nil {
		t.Error("half a file is accepted")
	}
}

const dep = `kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/drivers/char/virtio-rng.ko:
`

func testModules(t *testing.T, fail map[string]error) (m *modules, loaded func() []string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var order []string
	m.load = func(f string) error {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, moduleName(f))
		return fail[moduleName(f)]
	}
	return m, func() []string { mu.Lock(); defer mu.Unlock(); return order }
}

func TestModulesLoadAfterWhatTheyNeedAndOnce(t *testing.T) {
	m, loaded := testModules(t, nil)
	if err := m.Load("virtio_net", "erofs", "virtio-rng", "net_failover"); err != nil {
		t.Fatal(err)
	}
	want := []string{"failover", "net_failover", "virtio_net", "libcrc32c", "erofs", "virtio_rng"}
	if got := loaded(); !reflect.DeepEqual(got, want) {
		t.Errorf("loaded %v, want %v", got, want)
	}
	m2, loaded2 := testModules(t, nil)
	m2.adopt(m)
	if err := m2.Load("virtio_net", "erofs"); err != nil || len(loaded2()) != 0 {
		t.Errorf("loaded again after adopt: %v, %v", loaded2(), err)
	}
}

func TestModulesSideBySide(t *testing.T) {
	m, loaded := testModules(t, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := m.Load("virtio_net", "erofs"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(loaded()); n != 5 {
		t.Errorf("%d loads: %v", n, loaded())
	}
}

func TestModuleErrors(t *testing.T) {
	m, loaded := testModules(t, map[string]error{"libcrc32c": unix.ENOEXEC})
	err := m.Load("nosuch", "erofs", "virtio_rng")
	if !errors.Is(err, errNoModule) || !errors.Is(err, unix.ENOEXEC) || !strings.Contains(err.Error(), "erofs: libcrc32c") {
		t.Errorf("err = %v", err)
	}
	if got := loaded(); !reflect.DeepEqual(got, []string{"libcrc32c", "virtio_rng"}) {
		t.Errorf("loaded %v", got)
	}
}

func TestMatchAliases(t *testing.T) {
	const text = `# Aliases
alias fs-fuse fuse
alias fs-fuseblk fuse
alias net-pf-40 vsock
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias virtio:d00000002v* virtio_blk
alias nft-expr-1-masq nft_masq
alias nft-expr-2-masq nft_masq
alias usb:v0[1-3]FEp[!0]* some-usb
alias with space mod
`
	for alias, want := range map[string]string{
		"fs-fuse":         "fuse",
		"fs_fuse":         "fuse",
		"fs-fus":          "",
		"net-pf-40":       "vsock",
		"net-pf-4":        "",
		"nft-expr-2-masq": "nft_masq",
		"pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00": "virtio_pci",
		"pci:v00008086d00001001sv00001AF4sd00000002bc01sc00i00": "",
		"virtio:d00000002v00001AF4":                             "virtio_blk",
		"usb:v02FEp1":                                           "some_usb",
		"usb:v04FEp1":                                           "",
		"usb:v02FEp0":                                           "",
		"with space":                                            "mod",
		"":                                                      "",
	} {
		if got := strings.Join(matchAliases(text, alias), " "); got != want {
			t.Errorf("%q: %q, want %q", alias, got, want)
		}
	}
}

func TestMatchIsFnmatch(t *testing.T) {
	for _, c := range []struct {
		p, s string
		want bool
	}{
		{"", "", true}, {"*", "", true}, {"*", "abc", true}, {"a*c", "abbbc", true}, {"a*c", "abbb", false}, {"a*b*c", "aXbYbZc", true},
		{"?", "", false}, {"a?c", "abc", true}, {"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false}, {"[]]", "]", true}, {"[a", "[a", true}, {"[-a]", "-", true},
		{"***a", "bba", true}, {"*a*a*a*a*b", strings.Repeat("a", 40), false},
	} {
		if got := match(c.p, c.s); got != c.want {
			t.Errorf("match(%q, %q) = %v", c.p, c.s, got)
		}
	}
}

func TestParseUevent(t *testing.T) {
	u, ok := parseUevent([]byte("add@/devices/pci0000:00/0000:00:04.0/virtio1/block/vda\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=vda\x00DEVTYPE=disk\x00SEQNUM=1\x00"))
	want := uevent{"add", "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda", "block", "vda", "disk"}
	if !ok || u != want {
		t.Errorf("%+v %v", u, ok)
	}
	for _, bad := range []string{"", "libudev\x00\xfe\xed\xca\xfe", "@/x", "add@", "add"} {
		if u, ok := parseUevent([]byte(bad)); ok {
			t.Errorf("%q is taken for %+v", bad, u)
		}
	}
}

func TestDiskBySerial(t *testing.T) {
	sys := t.TempDir()
	for f, text := range map[string]string{"vda/serial": "dhow-root", "vdb/serial": "dhow-data\n", "nvme0n1/device/serial": "nv   ", "sda/device/vpd_pg80": "\x00\x80\x00\x04scsi", "loop0/size": "0"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(sys, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, f), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for serial, want := range map[string]string{"dhow-root": "vda", "dhow-data": "vdb", "nv": "nvme0n1", "scsi": "sda", "dhow": ""} {
		if got := diskBySerial(sys, serial); got != want {
			t.Errorf("%s: %q, want %q", serial, got, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	b := agentBackoff
	short := time.Second
	var got []time.Duration
	for _, life := range []time.Duration{short, short, short, short, short, short, short, short, short, time.Minute, short} {
		got = append(got, b.after(life))
	}
	ms := time.Millisecond
	want := []time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms, 0, 100 * ms}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestLineLimit(t *testing.T) {
	var l lineLimit
	passed := 0
	for range linesBurst + 10 {
		if ok, _ := l.take(time.Second); ok {
			passed++
		}
	}
	if passed != linesBurst {
		t.Errorf("%d lines passed", passed)
	}
	if ok, lost := l.take(time.Second + linesPeriod); !ok || lost != 10 {
		t.Errorf("next period: %v, %d lost", ok, lost)
	}
}

func TestSubmounts(t *testing.T) {
	const info = `22 1 253:0 / / ro - erofs /dev/vda ro
30 22 253:16 / /var/lib/dhow rw - ext4 /dev/vdb rw
31 30 0:40 / /var/lib/dhow/a\040b/merged rw - overlay overlay rw
32 22 0:41 / /var/lib/dhow2 rw - tmpfs x rw
33 31 0:42 / /var/lib/dhow/a\040b/merged/x rw - tmpfs x rw

`
	want := []string{"/var/lib/dhow/a b/merged/x", "/var/lib/dhow/a b/merged", "/var/lib/dhow"}
	if got := submounts(info, "/var/lib/dhow"); !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestReaperTellsChildrenFromOrphans(t *testing.T) {
	r := newReaper()
	r.ended(exit{pid: 5, status: syscall.WaitStatus(7 << 8), at: time.Unix(1, 2)})
	r.ended(exit{pid: 6, status: syscall.WaitStatus(9), at: time.Unix(3, 0)})
	if got, want := r.exits(), "5 7 0 1000000002\n6 137 9 3000000000\n"; got != want {
		t.Errorf("exits %q, want %q", got, want)
	}
	for i := range maxExits + 5 {
		r.ended(exit{pid: 1000 + i})
	}
	if got := r.exits(); strings.Count(got, "\n") != maxExits || strings.HasPrefix(got, "5 ") {
		t.Errorf("the table is not bounded: %d lines", strings.Count(got, "\n"))
	}
	c := make(chan exit, 1)
	r.waiters[77] = c
	r.ended(exit{pid: 77, status: syscall.WaitStatus(3 << 8)})
	if e := <-c; e.code() != 3 || strings.Contains(r.exits(), "\n77 ") {
		t.Errorf("a child's exit went astray: %v", e)
	}
}

// The supervisor with real processes: the agent's stand-in is a shell script
// that dies twice. Its own reaping is the test's.
func TestSupervisorRestartsAndStops(t *testing.T) {
	if os.Getenv("BOOT_SUPERVISOR") == "" {
		// wait4(-1) must not take other tests' children: a process of its own.
		cmd := exec.Command(os.Args[0], "-test.run=^TestSupervisorRestartsAndStops$", "-test.v")
		cmd.Env = append(os.Environ(), "BOOT_SUPERVISOR=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "agent")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat >>"+dir+"/in\necho >>"+dir+"/in\nn=$(wc -l <"+dir+"/in)\n[ $n -ge 3 ] && exec sleep 100\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := newReaper()
	stop, over := make(chan struct{}), make(chan struct{})
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(5 * time.Millisecond):
				r.reap()
			}
		}
	}()
	var waits []time.Duration
	lives := make(chan int, 10)
	s := &supervisor{
		log: &kmsg{}, reaper: r, path: script, boot: []byte("BOOT"), backoff: agentBackoff,
		sleep: func(d time.Duration, _ <-chan struct{}) { waits = append(waits, d) },
	}
	done := make(chan struct{})
	go func() { s.run(stop, 5*time.Second, func(pid int) { lives <- pid }); close(done) }()
	for range 3 {
		select {
		case <-lives:
		case <-time.After(20 * time.Second):
			t.Fatal("the agent is not restarted")
		}
	}
	for in := ""; in != "BOOT\nBOOT\nBOOT\n"; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(dir + "/in")
		in = string(b)
	}
	close(stop)
	<-done
	close(over)
	if !reflect.DeepEqual(waits, []time.Duration{100 * time.Millisecond}) {
		t.Errorf("waits %v", waits)
	}
}

func TestControlSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	i := &initProcess{log: &kmsg{}, reaper: newReaper(), stop: make(chan struct{})}
	i.reaper.ended(exit{pid: 9, at: time.Unix(0, 1)})
	go func() { _ = serveControl(i.log, fd, i.answer) }()
	for _, c := range [][2]string{
		{"exits\n", "9 0 0 1\n"},
		{"nonsense\n", "error: unknown request \"nonsense\"\n"},
		{strings.Repeat("x", 80), "error: a request is one line of at most 63 bytes\n"},
		{"reboot\n", "ok\n"},
		{"poweroff\n", "ok\n"},
	} {
		if got := request(t, path, c[0]); got != c[1] {
			t.Errorf("%q: %q, want %q", c[0], got, c[1])
		}
	}
	select {
	case <-i.stop:
	default:
		t.Error("nothing stops")
	}
	if i.how != unix.LINUX_REBOOT_CMD_RESTART {
		t.Error("the first request does not decide")
	}
}

func request(t *testing.T, path, text string) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	buf := make([]byte, 256)
	for {
		n, err := f.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return b.String()
		}
	}
}

func TestGuardKeepsInitAlive(t *testing.T) {
	k := &kmsg{}
	err := k.guard("x", func() error { panic("boom") })
	if err == nil || !strings.Contains(err.Error(), "x: panic") {
		t.Errorf("err = %v", err)
	}
}

func TestMask(t *testing.T) {
	for bits, want := range map[int]string{0: "0.0.0.0", 8: "255.0.0.0", 24: "255.255.255.0", 30: "255.255.255.252", 32: "255.255.255.255"} {
		if got := mask(bits).String(); got != want {
			t.Errorf("/%d: %s, want %s", bits, got, want)
		}
	}
}

func TestEmptyDir(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/b/c", "d"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	keep := filepath.Join(t.TempDir(), "keep")
	for _, f := range []string{keep, dir + "/a/b/f", dir + "/init"} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(keep), dir+"/d/link"); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := emptyDir(fd); err != nil {
		t.Fatal(err)
	}
	if ents, _ := os.ReadDir(dir); len(ents) != 0 || !exists(keep) {
		t.Errorf("left %v; outside kept: %v", ents, exists(keep))
	}
}
