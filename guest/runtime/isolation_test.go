//go:build linux

package runtime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/guest/runtime"
	"dhow/guest/runtime/spec"
	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// status runs a container and gives the fields of its /proc/self/status.
func (f *fixture) status(s *specs.Spec) map[string]string {
	f.tb.Helper()
	s.Process.Args = []string{"cat", "/proc/self/status"}
	res := f.run("status", s)
	if res.err != nil {
		f.tb.Fatal(res.err)
	}
	m := map[string]string{}
	for line := range strings.Lines(res.out) {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.Join(strings.Fields(v), " ")
	}
	return m
}

func TestConfinement(t *testing.T) {
	f := newFixture(t)
	check := func(name string, s *specs.Spec, want map[string]string) {
		t.Helper()
		got := f.status(s)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s is %q, want %q", name, k, got[k], v)
			}
		}
	}
	const def = "00000000a80425fb"
	check("default", f.spec(), map[string]string{
		"CapInh": "0000000000000000", "CapPrm": def, "CapEff": def, "CapBnd": def, "CapAmb": "0000000000000000",
		"NoNewPrivs": "0", "Seccomp": "2", "Seccomp_filters": "1", "Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "", "Umask": "0022", "SigIgn": "0000000000000000", "SigBlk": "0000000000000000",
	})

	s := f.spec()
	s.Process.NoNewPrivileges = true
	check("no new privileges", s, map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapEff": def})

	s = f.spec()
	s.Linux.Seccomp = nil
	check("unconfined", s, map[string]string{"Seccomp": "0"})

	s = f.spec()
	s.Process.Capabilities = &specs.LinuxCapabilities{}
	check("no capabilities", s, map[string]string{"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "Seccomp": "2"})
	s = f.spec()
	s.Process.Capabilities = nil
	check("none given", s, map[string]string{"CapBnd": "0000000000000000"})

	// A user other than root has no effective capabilities, but the bounding
	// set; ambient ones stay.
	s = f.spec()
	s.Process.User.Username = "bob"
	check("user", s, map[string]string{"Uid": "1000 1000 1000 1000", "Gid": "1001 1001 1001 1001", "Groups": "44 1001", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": def, "Seccomp": "2"})
	s = f.spec()
	s.Process.User.Username = "bob"
	one := []string{"CAP_NET_BIND_SERVICE"}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: one, Permitted: one, Effective: one, Inheritable: one, Ambient: one}
	check("ambient", s, map[string]string{"CapPrm": "0000000000000400", "CapEff": "0000000000000400", "CapAmb": "0000000000000400", "CapBnd": "0000000000000400"})

	s = f.spec()
	s.Process.User = specs.User{Username: "0"}
	s.Annotations = map[string]string{spec.AnnotationGroups: "video,77"}
	check("root by docker", s, map[string]string{"Gid": "0 0 0 0", "Groups": "0 10 44 77"})

	umask := uint32(0o077)
	s = f.spec()
	s.Process.User = specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}, Umask: &umask}
	check("numbers", s, map[string]string{"Uid": "7 7 7 7", "Gid": "8 8 8 8", "Groups": "9", "Umask": "0077"})
}

func TestUnknownUsers(t *testing.T) {
	f := newFixture(t)
	for user, want := range map[string]string{
		"nobody":     "unable to find user nobody: no matching entries in passwd file",
		"bob:nogrp":  "unable to find group nogrp: no matching entries in group file",
		"4294967295": "uids and gids must be in range 0-2147483647",
	} {
		s := f.spec("true")
		s.Process.User.Username = user
		if res := f.run("u", s); errdefs.Sentence(res.err) != want {
			// Create wraps the sentence with the step it happened in.
			t.Errorf("%s: %v, want %s", user, res.err, want)
		}
	}
}

func TestEnvironmentAndDirectory(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sh", "-c", "pwd; echo $HOME; echo $A; ls -ld /made/by/docker")
	s.Process.User.Username = "bob"
	s.Process.Env = append(s.Process.Env, "A=b c")
	s.Process.Cwd = "/made/by/docker"
	s.Root.Readonly = true
	res := f.run("env", s)
	lines := strings.Split(res.out, "\n")
	if res.err != nil || len(lines) < 4 || lines[0] != "/made/by/docker" || lines[1] != "/home/bob" || lines[2] != "b c" || !strings.HasPrefix(lines[3], "drwxr-xr-x    2 0 ") && !strings.Contains(lines[3], "root") {
		t.Errorf("%q %v", res.out, res.err)
	}
}

func TestNamespacesDiffer(t *testing.T) {
	f := newFixture(t)
	for _, ns := range []string{"pid", "mnt", "net", "uts", "ipc", "cgroup"} {
		out, _ := os.Readlink("/proc/self/ns/" + ns)
		if in := strings.TrimSpace(f.run("ns", f.spec("readlink", "/proc/self/ns/"+ns)).out); in == "" || in == out {
			t.Errorf("%s: inside %q, outside %q", ns, in, out)
		}
	}
	s := f.spec("sh", "-c", "hostname; cat /proc/sys/kernel/domainname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo $$; ip link | grep -c :; cat /proc/self/cgroup | tail -1")
	s.Hostname, s.Domainname = "box", "dom"
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	if res := f.run("s", s); !strings.HasPrefix(res.out, "box\ndom\n0\n1\n") || !strings.HasSuffix(res.out, "0::/\n") {
		t.Errorf("%q %v", res.out, res.err)
	}
	if b, _ := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); string(b) == "0\n" {
		t.Error("the machine's own sysctl was set")
	}
	for key, class := range map[string]errdefs.Class{"kernel.panic": errdefs.Denied, "vm.swappiness": errdefs.Denied, "net.../../kernel/panic": errdefs.Invalid} {
		s := f.spec("true")
		s.Linux.Sysctl = map[string]string{key: "1"}
		if res := f.run("s", s); !errdefs.Is(res.err, class) {
			t.Errorf("sysctl %s: %v", key, res.err)
		}
	}
}

// TestSharedNamespaces: container:… modes.
func TestSharedNamespaces(t *testing.T) {
	f := newFixture(t)
	c := f.start("first", f.spec("sleep", "1000"))
	s := f.spec("sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid; echo $$; cat /proc/1/comm")
	for i := range s.Linux.Namespaces {
		n := &s.Linux.Namespaces[i]
		switch n.Type {
		case specs.NetworkNamespace, specs.IPCNamespace, specs.PIDNamespace:
			kind := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.PIDNamespace: "pid"}[n.Type]
			n.Path = fmt.Sprintf("/proc/%d/ns/%s", c.Pid(), kind)
		}
	}
	res := f.run("second", s)
	lines := strings.Split(res.out, "\n")
	if res.err != nil || len(lines) < 5 {
		t.Fatalf("%q %v", res.out, res.err)
	}
	for i, ns := range []string{"net", "ipc", "pid"} {
		if want, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.Pid(), ns)); lines[i] != want {
			t.Errorf("%s is %s, want %s", ns, lines[i], want)
		}
	}
	if lines[3] == "1" || lines[4] != "sleep" {
		t.Errorf("the PID namespace is not the first's: %q", res.out)
	}
	s.Linux.Namespaces[1].Path = "/proc/999999/ns/net"
	if res := f.run("third", s); !errdefs.Is(res.err, errdefs.Conflict) {
		t.Errorf("namespace of a dead container: %v", res.err)
	}
	// The machine's PID namespace: all of the container's processes go with it.
	h := f.spec("sh", "-c", "sleep 1000 >/dev/null 2>&1 & readlink /proc/self/ns/pid")
	h.Linux.Namespaces = append(h.Linux.Namespaces[:3:3], h.Linux.Namespaces[4:]...)
	before := snapshot(t, f)
	if res := f.run("host", h); strings.TrimSpace(res.out) != readlink("/proc/self/ns/pid") {
		t.Errorf("%q %v", res.out, res.err)
	}
	before.compare(t, f)
}

func readlink(p string) string {
	s, _ := os.Readlink(p)
	return s
}

func TestPathsAndDevices(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sh", "-c", `
echo x > /proc/sys/kernel/panic && echo WROTE sys
echo x > /proc/sysrq-trigger && echo WROTE sysrq
echo x > /sys/kernel/profiling && echo WROTE profiling
for f in /proc/interrupts /proc/keys /proc/timer_list /proc/kcore; do [ ! -e $f ] || [ -z "$(head -c 1 $f)" ] || echo READ $f; done
for d in /proc/acpi /proc/scsi /sys/firmware; do [ ! -e $d ] || [ -z "$(ls $d)" ] || echo LISTED $d; done
chmod 0 /proc/interrupts 2>/dev/null && echo CHANGED
mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda && echo READ DISK
mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg && echo READ KMSG
mount -t tmpfs x /tmp && echo MOUNTED
mkdir /sys/fs/cgroup/x && echo CGROUP
unshare -r true && echo USERNS
echo > /dev/null && head -c 4 /dev/zero >/dev/null && head -c 4 /dev/urandom > /dev/null && echo devices ok
[ -c /dev/tty ] && [ -c /dev/full ] && [ -c /dev/random ] && [ -L /dev/ptmx ] && [ -L /dev/fd ] && [ -d /dev/shm ] && echo nodes ok
(ls /proc/1/fd) > /tmp/fds # in a child, so that the shell's own redirections do not show
tr '\n' ' ' < /tmp/fds
`)
	res := f.run("p", s)
	if res.err != nil {
		t.Fatal(res.err)
	}
	for line := range strings.Lines(res.out) {
		if w, _, _ := strings.Cut(strings.TrimSpace(line), " "); w != "" && w == strings.ToUpper(w) && w != "0" {
			t.Errorf("%s", line)
		}
	}
	for _, want := range []string{"devices ok\n", "nodes ok\n"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("no %q in %q", want, res.out)
		}
	}
	if !strings.HasSuffix(strings.TrimSpace(res.out), "0 1 2") {
		t.Errorf("descriptors: %q", res.out)
	}
	if st, err := os.Stat("/dev/null"); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("/dev/null of the machine: %v %v", st.Mode(), err)
	}
}

func TestMountsOfAllKinds(t *testing.T) {
	f := newFixture(t)
	dir := filepath.Join(f.dir, "vol")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(f.dir, "file")
	if err := os.WriteFile(file, []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(dir, "sub"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(filepath.Join(dir, "sub"), unix.MNT_DETACH)
	s := f.spec("sh", "-c", `
cat /etc/given; touch /rw/x && echo rw; touch /ro/x || echo ro; touch /ro/sub/x && echo sub rw; touch /rro/sub/x || echo sub ro
touch /norec/sub/x && echo alone; touch /t/x && echo tmp; grep ' /t ' /proc/mounts; touch /x || echo root ro; grep ' /rw ' /proc/mounts`)
	s.Root.Readonly = true
	s.Process.Cwd = "/tmp"
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/etc/given", Source: file, Type: "bind", Options: []string{"bind", "ro"}},
		specs.Mount{Destination: "/rw", Source: dir, Type: "bind", Options: []string{"rbind", "nosuid", "rprivate"}},
		specs.Mount{Destination: "/ro", Source: dir, Type: "bind", Options: []string{"rbind", "ro"}},
		specs.Mount{Destination: "/rro", Source: dir, Type: "bind", Options: []string{"rbind", "rro"}},
		specs.Mount{Destination: "/norec", Source: dir, Type: "bind", Options: []string{"bind"}},
		specs.Mount{Destination: "/t", Source: "tmpfs", Type: "tmpfs", Options: []string{"noexec", "size=1m", "mode=700"}},
	)
	res := f.run("m", s)
	for _, want := range []string{"content\n", "\nrw\n", "\nro\n", "\nsub rw\n", "\nsub ro\n", "\nalone\n", "\ntmp\n", "noexec", "size=1024k,mode=700", "root ro\n", "nosuid"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("no %q in %q (%v)", want, res.out, res.err)
		}
	}
	s.Mounts[len(s.Mounts)-1] = specs.Mount{Destination: "/x", Source: "/no/such/source", Type: "bind", Options: []string{"bind"}}
	if res := f.run("n", s); res.err == nil || !strings.Contains(res.err.Error(), "/no/such/source") {
		t.Errorf("a missing source: %v", res.err)
	}
}

// TestOverlayRoot mounts the root from layers by relative names, as snapshots
// are: an absolute name per layer would not fit the page that mount(2) takes.
func TestOverlayRoot(t *testing.T) {
	f := newFixture(t)
	layers := filepath.Join(f.dir, "layers")
	lower := make([]string, 0, 100)
	for i := range 100 {
		name := fmt.Sprintf("l%02d", i)
		if err := os.MkdirAll(filepath.Join(layers, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(layers, name, "f"+name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, name)
	}
	if err := os.Symlink(f.rootfs, filepath.Join(layers, "base")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(layers, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	opts := []string{"lowerdir=" + strings.Join(lower, ":") + ":base", "upperdir=upper", "workdir=work"}
	before := snapshot(t, f)
	s := f.spec("sh", "-c", "ls / | grep -c ^fl; echo new > /made; cat /made; head -1 /proc/mounts")
	res := f.run("o", s, func(c *runtime.CreateConfig) {
		c.Rootfs = []runtime.Mount{{Type: "overlay", Source: "overlay", Options: opts, Dir: layers}}
	})
	if res.err != nil || !strings.HasPrefix(res.out, "100\nnew\noverlay / overlay") {
		t.Errorf("%q %v", res.out, res.err)
	}
	if b, err := os.ReadFile(filepath.Join(layers, "upper/made")); err != nil || string(b) != "new\n" {
		t.Errorf("the upper layer: %q %v", b, err)
	}
	before.compare(t, f)
}

func TestRlimits(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c")
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}}
	if res := f.run("r", s); res.out != "100\n200\n0\n" {
		t.Errorf("%q %v", res.out, res.err)
	}
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_FOO"}}
	if res := f.run("r", s); !errdefs.Is(res.err, errdefs.Invalid) {
		t.Errorf("an unknown limit: %v", res.err)
	}
}

func TestOOMScore(t *testing.T) {
	f := newFixture(t)
	for _, score := range []int{500, 0} {
		s := f.spec("cat", "/proc/self/oom_score_adj")
		s.Process.OOMScoreAdj = &score
		if res := f.run("o", s); res.out != fmt.Sprintln(score) {
			t.Errorf("%d: %q %v", score, res.out, res.err)
		}
	}
	c := f.start("c", f.spec("sleep", "1000"))
	score := 300
	out, _ := f.exec(c.Container, func(p *specs.Process) { p.OOMScoreAdj = &score }, "cat", "/proc/self/oom_score_adj")
	if out != "300\n" {
		t.Errorf("exec: %q", out)
	}
}

// TestStreamsByName: docker lets a user other than root open /dev/stdout.
func TestStreamsByName(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sh", "-c", "echo hi > /dev/stdout; echo ho > /dev/stderr")
	s.Process.User.Username = "bob"
	if res := f.run("s", s); res.out != "hi\nho\n" {
		t.Errorf("%q %v", res.out, res.err)
	}
}

func TestSeccompWorks(t *testing.T) {
	f := newFixture(t)
	c := f.start("c", f.spec("sleep", "1000"))
	for _, user := range []string{"0", "bob"} {
		for _, nnp := range []bool{false, true} {
			change := func(p *specs.Process) { p.User.Username, p.NoNewPrivileges = user, nnp }
			out, _ := f.exec(c.Container, change, "grep", "-E", "Seccomp:|NoNewPrivs", "/proc/self/status")
			if want := map[bool]string{false: "NoNewPrivs:\t0\nSeccomp:\t2\n", true: "NoNewPrivs:\t1\nSeccomp:\t2\n"}[nnp]; out != want {
				t.Errorf("user %s, no_new_privs %t: %q", user, nnp, out)
			}
			if out, code := f.exec(c.Container, change, "unshare", "-U", "true"); code == 0 {
				t.Errorf("a user namespace can be made: %q", out)
			}
		}
	}
	if out, code := f.exec(c.Container, func(p *specs.Process) { p.Capabilities.Bounding = spec.AllCapabilities() }, "unshare", "-n", "true"); code == 0 {
		t.Errorf("an exec with more capabilities gets past the container's filter: %q", out)
	}
}

func TestPrivileged(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sh", "-c", "mount -t tmpfs x /tmp && echo mounted; mkdir /sys/fs/cgroup/x && echo cgroup; grep Seccomp: /proc/self/status; ls -l /dev/sub/kmsg; head -c 1 /dev/sub/kmsg >/dev/null && echo kmsg")
	caps := spec.AllCapabilities()
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	s.Linux.Seccomp, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	s.Mounts[3].Options, s.Mounts[4].Options = s.Mounts[3].Options[:3], s.Mounts[4].Options[1:]
	mode := os.FileMode(0o600)
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sub/kmsg", Type: "c", Major: 1, Minor: 11, FileMode: &mode}}
	res := f.run("p", s)
	for _, want := range []string{"mounted\n", "cgroup\n", "Seccomp:\t0\n", "crw-------", "kmsg\n"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("no %q in %q (%v)", want, res.out, res.err)
		}
	}
}
