//go:build linux

package runtime_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/guest/runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// outside makes a directory that no container may touch, and checks that none did.
func outside(t *testing.T, f *fixture) string {
	t.Helper()
	dir := filepath.Join(f.dir, "outside")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"passwd": "root:x:4242:4242::/pwned:/bin/sh\n", "victim": "untouched\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		ents, _ := os.ReadDir(dir)
		if len(ents) != 2 {
			t.Errorf("files were made outside: %v", ents)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, "victim")); string(b) != "untouched\n" {
			t.Errorf("a file outside was changed: %q", b)
		}
	})
	return dir
}

// TestSymlinkedMountPoints: in an image whose directories are links to places
// outside, mounts stay inside, or are refused.
func TestSymlinkedMountPoints(t *testing.T) {
	for link, refused := range map[string]bool{"proc": true, "sys": true, "dev": false, "etc": false, "data": false} {
		for _, target := range []string{"OUT", "../../../../../../../../OUT", "/proc/self/fd/5", "/proc/1/root/OUT", "loop"} {
			t.Run(link+" to "+strings.ReplaceAll(target, "/", "_"), func(t *testing.T) {
				f := newFixture(t)
				out := outside(t, f)
				f.run("warm", f.spec("true")) // loads the device rules
				path := filepath.Join(f.rootfs, link)
				_ = os.RemoveAll(path)
				to := strings.ReplaceAll(target, "OUT", out[1:])
				if target == "OUT" {
					to = out
				}
				if target == "loop" {
					to = link
				}
				if err := os.Symlink(to, path); err != nil {
					t.Fatal(err)
				}
				before := snapshot(t, f)
				s := f.spec("/bin/sh", "-c", "echo pwned > /data/victim; echo pwned > /etc/victim; cat /etc/passwd; echo ran")
				s.Mounts = append(s.Mounts,
					specs.Mount{Destination: "/data", Type: "tmpfs", Source: "tmpfs"},
					specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: filepath.Join(out, "victim"), Options: []string{"bind", "ro"}},
				)
				res := f.run("h", s)
				if refused && res.err == nil {
					t.Errorf("a mount on the link /%s is taken: %q", link, res.out)
				}
				if strings.Contains(res.out, "/pwned") {
					t.Errorf("a file outside is read: %q", res.out)
				}
				if target == "loop" && res.err == nil && link != "etc" {
					t.Error("a loop of links is taken")
				}
				before.compare(t, f)
			})
		}
	}
}

// TestDanglingMountPoints: what a dangling link names is made, inside.
func TestDanglingMountPoints(t *testing.T) {
	f := newFixture(t)
	out := outside(t, f)
	for link, to := range map[string]string{
		"etc/resolv.conf": "../run/systemd/resolve/stub.conf", "etc/abs": "/run/abs/file", "etc/chain": "chain2", "etc/chain2": "/run/chained",
		"etc/up": "../../../../../../../.." + out + "/made", "var": "/no/such/var",
	} {
		if err := os.Symlink(to, filepath.Join(f.rootfs, link)); err != nil {
			t.Fatal(err)
		}
	}
	s := f.spec("sh", "-c", "cat /run/systemd/resolve/stub.conf /etc/abs /run/chained /etc/up /var/lib/dir/victim")
	for _, dest := range []string{"/etc/resolv.conf", "/etc/abs", "/etc/chain", "/etc/up"} {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: filepath.Join(out, "victim"), Options: []string{"bind", "ro"}})
	}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/var/lib/dir", Type: "bind", Source: out, Options: []string{"bind", "ro"}})
	if res := f.run("d", s); res.err != nil || res.out != strings.Repeat("untouched\n", 5) {
		t.Errorf("%q %v", res.out, res.err)
	}
	if st, err := os.Stat(filepath.Join(f.rootfs, "no/such/var/lib/dir")); err != nil || !st.IsDir() {
		t.Errorf("the directory behind the link: %v", err)
	}
}

// TestPasswdOutside: the container's users come from files inside of it.
func TestPasswdOutside(t *testing.T) {
	f := newFixture(t)
	out := outside(t, f)
	passwd := filepath.Join(f.rootfs, "etc/passwd")
	set := func(change func() error) {
		t.Helper()
		_ = os.Remove(passwd)
		if err := change(); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func() error{
		"link out":     func() error { return os.Symlink(filepath.Join(out, "passwd"), passwd) },
		"relative out": func() error { return os.Symlink("../../../../../.."+filepath.Join(out, "passwd"), passwd) },
		"magic link":   func() error { return os.Symlink("/proc/self/fd/3", passwd) },
		"root link":    func() error { return os.Symlink("/proc/1/root"+filepath.Join(out, "passwd"), passwd) },
		"fifo":         func() error { return unix.Mkfifo(passwd, 0o644) },
		"directory":    func() error { return os.Mkdir(passwd, 0o755) },
		"device":       func() error { return unix.Mknod(passwd, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"missing":      func() error { return nil },
	} {
		set(change)
		s := f.spec("grep", "^Uid", "/proc/self/status")
		s.Process.User.Username = "0"
		if res := f.run("p", s); res.err != nil || res.out != "Uid:\t0\t0\t0\t0\n" {
			t.Errorf("%s: %q %v", name, res.out, res.err)
		}
	}
	set(func() error { return os.WriteFile(passwd, bytes.Repeat([]byte("x:x:1:1:::\n"), 1<<16), 0o644) })
	s := f.spec("grep", "^Uid", "/proc/self/status")
	s.Process.User.Username = "0"
	if res := f.run("p", s); res.err != nil || res.out != "Uid:\t0\t0\t0\t0\n" {
		t.Errorf("large: %q %v", res.out, res.err)
	}
}

// TestWorkingDirectoryThroughDescriptors is CVE-2024-21626: no descriptor of a
// host directory is open that a working directory could lead through.
func TestWorkingDirectoryThroughDescriptors(t *testing.T) {
	f := newFixture(t)
	for fd := range 256 {
		for _, format := range []string{"/proc/self/fd/%d", "/proc/self/fd/%d/../../..", "/proc/1/fd/%d"} {
			if fd > 12 && format != "/proc/self/fd/%d" {
				continue
			}
			s := f.spec("/bin/sh", "-c", "cat ../../../../../../../../../../etc/passwd")
			s.Process.Cwd = fmt.Sprintf(format, fd)
			if res := f.run("w", s); res.err == nil && !strings.HasPrefix(res.out, "root:x:0:0:root:/root:/bin/sh\nbob") {
				t.Errorf("%s leads to %q", s.Process.Cwd, res.out)
			}
		}
	}
	c := f.start("c", f.spec("sleep", "1000"))
	for fd := range 16 {
		p := *f.spec("/bin/pwd").Process
		p.Cwd = fmt.Sprintf("/proc/self/fd/%d", fd)
		if pr, err := c.Exec(t.Context(), runtime.ExecConfig{Process: &p}); err == nil {
			<-pr.Wait()
			t.Errorf("an exec starts in %s", p.Cwd)
		}
	}
}

// TestNothingOfTheAgentInside looks at an exec's process from inside, at the
// descriptors and files that it could be reached by.
func TestNothingOfTheAgentInside(t *testing.T) {
	f := newFixture(t)
	c := f.start("c", f.spec("sh", "-c", `
seen=
while [ -z "$stop" ]; do
  for p in /proc/[0-9]*; do
    case $p in /proc/1|/proc/$$) continue;; esac
    for d in root cwd exe; do l=$(readlink $p/$d 2>/dev/null) && case $l in /|/bin/busybox|"") ;; *) echo "$p/$d -> $l";; esac; done
    if (echo x >> $p/exe) 2>/dev/null; then case $(readlink $p/exe) in /bin/busybox|"") ;; *) echo "WROTE $p/exe";; esac; fi
  done
done`))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			line, err := c.out.ReadString('\n')
			if err != nil {
				return
			}
			if !strings.Contains(line, "Permission denied") {
				t.Errorf("seen inside: %s", line)
			}
		}
	}()
	for range 60 {
		f.exec(c.Container, nil, "true")
	}
	_ = c.Signal(t.Context(), unix.SIGKILL, true)
	<-c.Wait()
	<-done
}

// TestEnterCannotBeOverwritten is CVE-2019-5736.
func TestEnterCannotBeOverwritten(t *testing.T) {
	f := newFixture(t)
	before, err := os.ReadFile(enterBinary)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range children(t) {
		exe := fmt.Sprintf("/proc/%d/exe", pid)
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) != "dhow-enter\n" {
			continue
		}
		if w, err := os.OpenFile(exe, os.O_WRONLY, 0); err == nil {
			if _, err := w.Write([]byte("pwned")); err == nil {
				t.Error("dhow-enter can be written to while it runs")
			}
			_ = w.Close()
		}
	}
	_ = f
	if after, _ := os.ReadFile(enterBinary); !bytes.Equal(before, after) {
		t.Error("dhow-enter has changed")
	}
}

// TestEveryFailureLeavesNothing makes each step of the setup fail.
func TestEveryFailureLeavesNothing(t *testing.T) {
	f := newFixture(t)
	f.run("warm", f.spec("true"))
	before := snapshot(t, f)
	bad := func(change func(*specs.Spec)) *specs.Spec {
		s := f.spec("true")
		change(s)
		return s
	}
	n := int64(1)
	weight := uint16(500)
	for name, s := range map[string]*specs.Spec{
		"root":        bad(func(s *specs.Spec) { s.Root.Path = "/no/such/root" }),
		"root a file": bad(func(s *specs.Spec) { s.Root.Path = enterBinary }),
		"mount":       bad(func(s *specs.Spec) { s.Mounts[0].Type = "nosuchfs" }),
		"options":     bad(func(s *specs.Spec) { s.Mounts[1].Options = []string{"nosuchoption"} }),
		"bind": bad(func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such"})
		}),
		"device":   bad(func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/etc/passwd/x", Type: "c"}} }),
		"hostname": bad(func(s *specs.Spec) { s.Hostname = strings.Repeat("x", 100) }),
		"sysctl":   bad(func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no_such": "1"} }),
		"user":     bad(func(s *specs.Spec) { s.Process.User.Username = "nobody" }),
		"cwd":      bad(func(s *specs.Spec) { s.Process.Cwd = "/etc/passwd/x" }),
		"program":  bad(func(s *specs.Spec) { s.Process.Args = []string{"nosuch"} }),
		"rlimit": bad(func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}}
		}),
		"capability": bad(func(s *specs.Spec) { s.Process.Capabilities.Effective = []string{"CAP_FOO"} }),
		"device rule": bad(func(s *specs.Spec) {
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Type: "x", Access: "r"}}
		}),
		"limit": bad(func(s *specs.Spec) {
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &n}
			s.Linux.Resources.BlockIO = &specs.LinuxBlockIO{Weight: &weight}
			s.Linux.Resources.Unified = map[string]string{"no.such": "1"}
		}),
		"namespace":     bad(func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/etc/passwd" }),
		"pid namespace": bad(func(s *specs.Spec) { s.Linux.Namespaces[3].Path = "/etc/passwd" }),
		"seccomp":       bad(func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "foo"} }),
		"tty":           bad(func(s *specs.Spec) { s.Mounts = append(s.Mounts[:2:2], s.Mounts[3:]...) }),
		"hooks":         bad(func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/x"}}} }),
	} {
		res := f.run("bad", s, func(c *runtime.CreateConfig) { c.IO.Terminal = name == "tty" })
		if res.err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(res.err.Error(), "ended while") {
			t.Errorf("%s: no reason: %v", name, res.err)
		}
		before.compare(t, f)
	}
	if res := f.run("good", f.spec("true")); res.err != nil {
		t.Errorf("after all of them: %v", res.err)
	}
	// A filter under which execve itself is refused.
	s := f.spec("true")
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"execve"}, Action: specs.ActErrno}}}
	if res := f.run("bad", s); res.err == nil {
		t.Error("execve gets past a filter")
	}
	before.compare(t, f)
}
