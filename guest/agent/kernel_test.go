//go:build linux

package agent_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"dhow/internal/testkit"
)

// machine is an agent of its own on this kernel: real overlayfs, namespaces
// and cgroups, and the stock client on its socket.
type machine struct {
	*client.Client
	t      *testing.T
	dir    string
	cgroup string
	cmd    *exec.Cmd
	ended  chan error
	log    bytes.Buffer
}

var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "dhow-agent-bin-")
	if err != nil {
		return "", err
	}
	built = dir
	c := exec.Command("go", "build", "-o", dir+"/", "dhow/cmd/dhow-agent", "dhow/cmd/dhow-enter")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the guest's programs: %w\n%s", err, out)
	}
	return dir, nil
})

var built string // where the binaries are; "" before anybody wanted them

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	testkit.Kernel(t)
	_, err := os.Stat("/usr/bin/busybox")
	testkit.Need(t, err, "run `make deps`")
	m := &machine{t: t, dir: testkit.ShortDir(t)}
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		root += "/unified" // a hybrid machine: limits cannot be tested on it
	}
	m.cgroup = filepath.Join(root, fmt.Sprintf("dhow-test-%d", os.Getpid()))
	if err := os.MkdirAll(m.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Rmdir(filepath.Join(m.cgroup, "docker"))
		if err := unix.Rmdir(m.cgroup); err != nil {
			t.Errorf("cgroup: %v", err)
		}
	})
	m.start()
	t.Cleanup(func() {
		if m.cmd != nil {
			m.stop(unix.SIGTERM)
		}
		if t.Failed() {
			t.Logf("agent's log:\n%s", m.log.String())
		}
	})
	c, err := client.New(client.WithHost("unix://" + m.dir + "/s"))
	if err != nil {
		t.Fatal(err)
	}
	m.Client = c
	t.Cleanup(func() { _ = c.Close() })
	return m
}

func (m *machine) start() {
	m.t.Helper()
	bin, err := binaries()
	if err != nil {
		m.t.Fatal(err)
	}
	m.cmd = exec.Command(bin+"/dhow-agent", "--root", m.dir+"/r", "--socket", m.dir+"/s", "--enter", bin+"/dhow-enter", "--cgroup-root", m.cgroup)
	m.cmd.Stderr = &m.log
	// Its own session: a signal to the test's group must reach it only through stop.
	m.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.ended = make(chan error, 1)
	go func(c *exec.Cmd) { m.ended <- c.Wait() }(m.cmd)
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := os.Stat(m.dir + "/s"); err == nil {
			return
		}
		select {
		case err := <-m.ended:
			m.t.Fatalf("the agent ended: %v\n%s", err, m.log.String())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the agent does not listen\n%s", m.log.String())
		}
	}
}

func (m *machine) stop(sig unix.Signal) {
	m.t.Helper()
	_ = m.cmd.Process.Signal(sig)
	err := <-m.ended
	if sig == unix.SIGTERM && err != nil {
		m.t.Errorf("the agent's end: %v", err)
	}
	m.cmd = nil
}

// load loads busybox as an image of one layer.
func (m *machine) load() {
	m.t.Helper()
	program, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		m.t.Fatal(err)
	}
	var layer bytes.Buffer
	add := func(w *tar.Writer, h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			m.t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			m.t.Fatal(err)
		}
	}
	w := tar.NewWriter(&layer)
	for _, d := range []string{"bin", "etc", "tmp"} {
		add(w, tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(w, tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for _, a := range []string{"sh", "cat", "echo", "true", "sleep", "stty", "yes", "head", "kill", "id", "seq"} {
		add(w, tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(w, tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	_ = w.Close()
	sum := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}`, sum(layer.Bytes()))
	var archive bytes.Buffer
	w = tar.NewWriter(&archive)
	file := func(name string, b []byte) { add(w, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, b) }
	name := sum([]byte(config)) + ".json"
	file(name, []byte(config))
	file("layer.tar", layer.Bytes())
	manifest, _ := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{"busybox:latest"}, "Layers": []string{"layer.tar"}}})
	file("manifest.json", manifest)
	_ = w.Close()
	r, err := m.ImageLoad(m.t.Context(), &archive)
	if err != nil {
		m.t.Fatal(err)
	}
	out, _ := io.ReadAll(r)
	_ = r.Close()
	if !bytes.Contains(out, []byte("Loaded image: busybox:latest")) {
		m.t.Fatalf("load: %s", out)
	}
}

func (m *machine) create(c container.Config, h container.HostConfig) string {
	m.t.Helper()
	c.Image = "busybox"
	if h.NetworkMode == "" {
		h.NetworkMode = "none"
	}
	r, err := m.ContainerCreate(m.t.Context(), client.ContainerCreateOptions{Config: &c, HostConfig: &h})
	if err != nil {
		m.t.Fatal(err)
	}
	return r.ID
}

// run is `docker run`: create, attach, wait, start. It returns what came out.
func (m *machine) run(c container.Config, h container.HostConfig, stdin io.Reader) (out, errs string, code int64, err error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 30*time.Second)
	defer cancel()
	c.AttachStdout, c.AttachStderr = true, true
	c.OpenStdin, c.StdinOnce, c.AttachStdin = stdin != nil, stdin != nil, stdin != nil
	h.AutoRemove = true
	id := m.create(c, h)
	a, err := m.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: stdin != nil, Stdout: true, Stderr: true})
	if err != nil {
		m.t.Fatal(err)
	}
	defer a.Close()
	w := m.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
	if _, err := m.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return "", "", 0, err
	}
	if stdin != nil {
		go func() {
			_, _ = io.Copy(a.Conn, stdin)
			_ = a.CloseWrite()
		}()
	}
	var bo, be bytes.Buffer
	if c.Tty {
		_, err = io.Copy(&bo, a.Reader)
	} else {
		_, err = stdcopy.StdCopy(&bo, &be, a.Reader)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	select {
	case r := <-w.Result:
		code = r.StatusCode
	case err := <-w.Error:
		m.t.Fatal(err)
	}
	return bo.String(), be.String(), code, nil
}

func (m *machine) logs(id string) string {
	m.t.Helper()
	r, err := m.ContainerLogs(m.t.Context(), id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	var b bytes.Buffer
	_, _ = stdcopy.StdCopy(&b, &b, r)
	return b.String()
}

func sh(script string) container.Config { return container.Config{Cmd: []string{"sh", "-c", script}} }

func TestKernelRun(t *testing.T) {
	m := newMachine(t)
	m.load()
	t.Run("streams and exit code", func(t *testing.T) {
		out, errs, code, err := m.run(sh("echo out; echo err >&2; exit 7"), container.HostConfig{}, nil)
		if out != "out\n" || errs != "err\n" || code != 7 || err != nil {
			t.Errorf("%q %q %d %v", out, errs, code, err)
		}
	})
	t.Run("input", func(t *testing.T) {
		data := strings.Repeat("0123456789abcdef\n", 1<<16) // more than all buffers on the way
		out, _, code, err := m.run(container.Config{Cmd: []string{"cat"}}, container.HostConfig{}, strings.NewReader(data))
		if out != data || code != 0 || err != nil {
			t.Errorf("%d bytes of %d, %d, %v", len(out), len(data), code, err)
		}
	})
	t.Run("isolation", func(t *testing.T) {
		out, _, _, err := m.run(sh("echo $$ $(cat /proc/sys/kernel/hostname) $(id -u); cat /etc/hostname; echo x > /f; cat /f"), container.HostConfig{}, nil)
		f := strings.Fields(out)
		if err != nil || len(f) != 5 || f[0] != "1" || f[1] != f[3] || len(f[1]) != 12 || f[2] != "0" || f[4] != "x" {
			t.Errorf("%q %v", out, err)
		}
	})
	t.Run("signal", func(t *testing.T) {
		if _, _, code, err := m.run(sh("kill -KILL $$; sleep 5"), container.HostConfig{PidMode: "host"}, nil); code != 137 || err != nil {
			t.Errorf("%d %v", code, err)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		c := sh("stty size; exit 3")
		c.Tty = true
		out, _, code, err := m.run(c, container.HostConfig{ConsoleSize: [2]uint{33, 111}}, strings.NewReader(""))
		_ = out
		if code != 3 && code != 129 || err != nil { // the client's end hangs up
			t.Errorf("%q %d %v", out, code, err)
		}
	})
	for name, c := range map[string]struct{ cmd, want string }{
		"missing":        {"nosuch", `exec: "nosuch": executable file not found in $PATH`},
		"missing path":   {"/nosuch", `exec: "/nosuch": stat /nosuch: no such file or directory`},
		"not executable": {"/etc/passwd", `exec: "/etc/passwd": permission denied`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, _, err := m.run(container.Config{Cmd: []string{c.cmd}}, container.HostConfig{}, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
	list, err := m.ContainerList(t.Context(), client.ContainerListOptions{All: true})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("left behind: %v %v", list.Items, err)
	}
	left, err := os.ReadDir(filepath.Join(m.cgroup, "docker"))
	for _, d := range left {
		if d.IsDir() && len(d.Name()) == 64 { // a container's
			t.Errorf("a cgroup is left: %s", d.Name())
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func TestKernelLife(t *testing.T) {
	m := newMachine(t)
	m.load()
	ctx := t.Context()
	// It ends by itself at SIGTERM: PID 1 ignores what it does not handle.
	id := m.create(sh(`trap 'echo bye; exit 0' TERM; i=0; while [ $i -lt 5 ]; do echo line $i; i=$((i+1)); done; while true; do sleep 0.05; done`), container.HostConfig{})
	if _, err := m.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(m.logs(id), "line 4"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("logs %q", m.logs(id))
		}
	}
	logs, err := m.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true, Tail: "3"})
	if err != nil {
		t.Fatal(err)
	}
	followed := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		_, _ = stdcopy.StdCopy(&b, &b, logs)
		followed <- b.String()
	}()
	x, err := m.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: []string{"sh", "-c", "cat; echo done; exit 9"}, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	a, err := m.ExecAttach(ctx, x.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = a.Conn.Write([]byte("typed\n"))
	_ = a.CloseWrite()
	var b bytes.Buffer
	_, _ = stdcopy.StdCopy(&b, &b, a.Reader)
	a.Close()
	if in, err := m.ExecInspect(ctx, x.ID, client.ExecInspectOptions{}); err != nil || b.String() != "typed\ndone\n" || in.ExitCode != 9 {
		t.Errorf("exec: %q %+v %v", b.String(), in, err)
	}
	top, err := m.ContainerTop(ctx, id, client.ContainerTopOptions{})
	if err != nil || len(top.Processes) == 0 || !strings.Contains(strings.Join(top.Processes[0], " "), "sh -c trap") {
		t.Errorf("top: %v %v", top.Processes, err)
	}
	if _, err := m.ContainerPause(ctx, id, client.ContainerPauseOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := m.ContainerUnpause(ctx, id, client.ContainerUnpauseOptions{}); err != nil {
		t.Error(err)
	}
	timeout := 10
	begun := time.Now()
	if _, err := m.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &timeout}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > 8*time.Second {
		t.Errorf("stop took %v: it was killed", d)
	}
	text := <-followed
	if !strings.HasSuffix(text, "bye\n") || strings.Contains(text, "line 0") {
		t.Errorf("logs -f --tail 3: %q", text)
	}
	in, err := m.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil || in.Container.State.Status != container.StateExited || in.Container.State.ExitCode != 0 {
		t.Errorf("%+v %v", in.Container.State, err)
	}
	if _, err := m.ContainerRemove(ctx, id, client.ContainerRemoveOptions{}); err != nil {
		t.Error(err)
	}
}

func TestKernelAgentDies(t *testing.T) {
	m := newMachine(t)
	m.load()
	ctx := t.Context()
	ran := m.create(sh("test -s /kept || echo data > /kept; echo written; sleep 1000"), container.HostConfig{})
	auto := m.create(sh("sleep 1000"), container.HostConfig{AutoRemove: true})
	policy := m.create(sh("sleep 1000"), container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}})
	for _, id := range []string{ran, auto, policy} {
		if _, err := m.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); m.logs(ran) != "written\n"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("logs %q", m.logs(ran))
		}
	}
	in, err := m.ContainerInspect(ctx, ran, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.stop(unix.SIGKILL)
	_ = os.Remove(m.dir + "/s")
	m.start()
	pid := in.Container.State.Pid
	in, err = m.ContainerInspect(ctx, ran, client.ContainerInspectOptions{})
	if err != nil || in.Container.State.Status != container.StateExited || in.Container.State.ExitCode != 255 {
		t.Errorf("%+v %v", in.Container.State, err)
	}
	// The agent answers: so it has ended what it found.
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(stat, []byte(") Z ")) {
		t.Errorf("the process of a former life still runs: %s", stat)
	}
	if _, err := m.ContainerInspect(ctx, auto, client.ContainerInspectOptions{}); err == nil {
		t.Error("the container that goes with its process is still there")
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		in, err := m.ContainerInspect(ctx, policy, client.ContainerInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if in.Container.State.Running {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its policy did not bring it back: %+v", in.Container.State)
		}
		time.Sleep(10 * time.Millisecond)
	}
	// The data is there, and it starts again.
	if _, err := m.ContainerStart(ctx, ran, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	x, err := m.ExecCreate(ctx, ran, client.ExecCreateOptions{Cmd: []string{"cat", "/kept"}, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	a, err := m.ExecAttach(ctx, x.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	_, _ = stdcopy.StdCopy(&b, &b, a.Reader)
	a.Close()
	if b.String() != "data\n" {
		t.Errorf("%q", b.String())
	}
	zero := 0
	for _, id := range []string{ran, policy} {
		if _, err := m.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &zero}); err != nil {
			t.Error(err)
		}
	}
}
