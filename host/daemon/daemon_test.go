package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/host/vm/vmtest"
	"dhow/internal/errdefs"
	"dhow/internal/testkit"
	"dhow/proto/control"
)

func TestWholeLife(t *testing.T) {
	r := newRig(t, wellBehaved, nil)
	s := r.mustStatus()
	if s.State != client.Stopped || s.Version != "1.2.3" || s.PID != os.Getpid() || s.DockerSocket != r.layout.DockerSocket() || s.DiskSize != 2<<30 {
		t.Fatalf("%+v", s)
	}
	var steps []string
	if err := r.Start(r.ctx(), func(s string) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	if len(steps) != 5 || steps[3] != "booting Linux" {
		t.Errorf("steps %q", steps)
	}
	s = r.mustStatus()
	if s.State != client.Running || s.Guest == nil || s.Kernel != "6.1.0-test" || s.Boot <= 0 || s.Uptime <= 0 || s.Acceleration == "" {
		t.Fatalf("%+v", s)
	}
	if i := slices.IndexFunc(s.BootSteps, func(b client.BootStep) bool { return b.Name == "guest: agent" }); i < 0 || s.BootSteps[i].At != int64(time.Second) {
		t.Errorf("boot steps %+v", s.BootSteps)
	}
	st, err := os.Stat(r.layout.DataDisk())
	if err != nil || st.Size() != 2<<30 {
		t.Fatalf("data disk: %v, %v", st, err)
	}
	if used := config.DiskUsed(r.layout.DataDisk()); used > 1<<20 {
		t.Errorf("the new data disk takes %d bytes", used)
	}
	r.mustPing()
	if err := r.Start(r.ctx(), nil); err != nil {
		t.Fatalf("start of a running machine: %v", err)
	}
	steps = nil
	if err := r.Stop(r.ctx(), client.StopOptions{}, func(s string) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	if len(steps) != 2 || r.mustStatus().State != client.Stopped {
		t.Errorf("steps %q, %+v", steps, r.mustStatus())
	}
	if err := r.Stop(r.ctx(), client.StopOptions{}, nil); err != nil {
		t.Fatalf("stop of a stopped machine: %v", err)
	}
	r.mustPing() // boots again
	if n := r.count(); n != 2 {
		t.Errorf("%d boots", n)
	}
	if string(r.configs[0].Boot) == string(r.configs[1].Boot) {
		t.Error("two boots had the same key")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{r.layout.DaemonSocket(), r.layout.DockerSocket()} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", path)
		}
	}
}

func TestBootConfig(t *testing.T) {
	r := newRig(t, wellBehaved, nil)
	r.mustPing()
	c := r.configs[0]
	var b control.Boot
	if err := json.Unmarshal(c.Boot, &b); err != nil {
		t.Fatal(err)
	}
	if len(b.Key) != control.KeySize || b.Protocol != control.Protocol || b.Version != "1.2.3" || b.Machine != "default" || time.Since(b.Time) > time.Minute {
		t.Errorf("boot %+v", b)
	}
	if b.Network == nil || b.Network.Address != "192.168.127.2/24" || b.Network.MAC != c.MAC || b.Network.MTU != 65520 {
		t.Errorf("network %+v", b.Network)
	}
	if c.Cmdline != "quiet" || c.CPUs != 1 || c.Memory != 1<<30 || c.DataDisk != r.layout.DataDisk() || filepath.Base(c.Kernel) != "kernel" {
		t.Errorf("config %+v", c)
	}
	if n, err := net.Dial("unix", c.NetSocket); err != nil {
		t.Errorf("nobody listens on the network's socket: %v", err)
	} else {
		_ = n.Close()
	}
}

func TestManyStartsAreOneBoot(t *testing.T) {
	r := newRig(t, func(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error {
		time.Sleep(100 * time.Millisecond)
		return wellBehaved(ctx, g, a)
	}, nil)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if i%2 == 0 {
				if err := r.Start(r.ctx(), nil); err != nil {
					t.Error(err)
				}
				return
			}
			resp, err := r.ping()
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if b, _ := io.ReadAll(resp.Body); string(b) != "OK" {
				t.Errorf("%s %q", resp.Status, b)
			}
		}()
	}
	wg.Wait()
	if n := r.count(); n != 1 {
		t.Fatalf("%d boots", n)
	}
}

func TestAClientThatLeavesDoesNotEndTheBoot(t *testing.T) {
	gate := make(chan struct{})
	r := newRig(t, func(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil
		}
		return wellBehaved(ctx, g, a)
	}, nil)
	ctx, cancel := context.WithCancel(r.ctx())
	err := r.Start(ctx, func(s string) {
		if s == "waiting for the agent" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if s := r.mustStatus(); s.State != client.Starting || s.Step != "waiting for the agent" {
		t.Fatalf("%+v", s)
	}
	close(gate)
	r.awaitState(client.Running)
}

func TestFailedBootSaysWhy(t *testing.T) {
	for name, test := range map[string]struct {
		guest guest
		set   func(*Options, *config.Settings)
		spoil func(*rig)
		want  []string
	}{
		"kernel panic": {
			guest: func(_ context.Context, g *vmtest.GuestNet, _ *testkit.Agent) error {
				g.Console([]byte("hello\nKernel panic - not syncing: no root\n"))
				g.Crash()
				return nil
			},
			want: []string{"waiting for the agent", "Kernel panic - not syncing: no root"},
		},
		"no agent": {
			guest: func(ctx context.Context, g *vmtest.GuestNet, _ *testkit.Agent) error {
				g.Console([]byte("dhow-init: \x1b[31mno data disk\n"))
				<-ctx.Done()
				return nil
			},
			set:  func(o *Options, _ *config.Settings) { o.BootTimeout = 100 * time.Millisecond },
			want: []string{"did not answer in 100ms", "no data disk"},
		},
		"version": {
			guest: func(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error {
				a.Version, a.Protocol = "0.0.9", 77
				return wellBehaved(ctx, g, a)
			},
			want: []string{"1.2.3", "0.0.9", "77"},
		},
		"image gone": {
			guest: wellBehaved,
			spoil: func(r *rig) { _ = os.Remove(filepath.Join(r.image, "root.erofs")) },
			want:  []string{"finding the VM image", "damaged", "root.erofs"},
		},
		"image changed": {
			guest: wellBehaved,
			spoil: func(r *rig) { _ = os.WriteFile(filepath.Join(r.image, "kernel"), []byte("lenrek"), 0o600) },
			want:  []string{"damaged", "kernel", "digest"},
		},
		"disk is a directory": {
			guest: wellBehaved,
			spoil: func(r *rig) { _ = os.Mkdir(r.layout.DataDisk(), 0o700) },
			want:  []string{"preparing the data disk", "not a regular file"},
		},
		"settings": {
			guest: wellBehaved,
			spoil: func(r *rig) { _ = os.WriteFile(r.layout.ConfigFile(), []byte(`{"cpus": 900}`), 0o600) },
			want:  []string{"cpus=900"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, test.guest, test.set)
			if test.spoil != nil {
				test.spoil(r)
			}
			resp, err := r.ping()
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var m struct{ Message string }
			if err := json.NewDecoder(resp.Body).Decode(&m); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
				t.Fatalf("%s, %v", resp.Status, err)
			}
			for _, w := range test.want {
				if !strings.Contains(m.Message, w) {
					t.Errorf("message %q does not say %q", m.Message, w)
				}
			}
			if strings.Contains(m.Message, "\x1b") {
				t.Errorf("message %q has control characters", m.Message)
			}
			s := r.mustStatus()
			if s.State != client.Failed || s.Error != m.Message {
				t.Errorf("status %s %q", s.State, s.Error)
			}
			if err := r.Start(r.ctx(), nil); err == nil || err.Error() != m.Message {
				t.Errorf("start: %v", err)
			}
			if m, _ := lastMachine(r); m != nil && m.State() != "stopped" {
				t.Errorf("the machine is %s", m.State())
			}
		})
	}
}

func lastMachine(r *rig) (*vmtest.Memory, *testkit.Agent) {
	if r.count() == 0 {
		return nil, nil
	}
	return r.last()
}

func TestMachineDiesAndComesBack(t *testing.T) {
	r := newRig(t, wellBehaved, nil)
	r.mustPing()
	// A docker connection that is open when the machine dies ends.
	c, err := net.Dial("unix", r.layout.DockerSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("GET /_ping HTTP/1.1\r\nHost: d\r\n")); err != nil {
		t.Fatal(err)
	}
	for r.mustStatus().Clients != 1 {
		time.Sleep(time.Millisecond)
	}
	m, _ := r.last()
	if err := m.Kill(); err != nil { // as if its process were killed
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the docker connection did not end")
	}
	for r.mustStatus().State == client.Running {
		time.Sleep(time.Millisecond)
	}
	r.mustPing()
	if n := r.count(); n != 2 {
		t.Errorf("%d boots", n)
	}
}

func TestCrashIsTold(t *testing.T) {
	crash := make(chan struct{})
	r := newRig(t, func(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		done := make(chan struct{})
		go func() { _ = wellBehaved(ctx, g, a); close(done) }()
		select {
		case <-crash:
			g.Console([]byte("Oops: 0002\n"))
			g.Crash()
		case <-ctx.Done():
		case <-done:
		}
		cancel()
		<-done
		return nil
	}, nil)
	r.mustPing()
	close(crash)
	if s := r.awaitState(client.Failed); !strings.Contains(s.Error, "Oops: 0002") {
		t.Errorf("error %q", s.Error)
	}
}

func TestAgentRestartKeepsTheMachine(t *testing.T) {
	restart := make(chan struct{})
	r := newRig(t, func(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error {
		first, end := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- a.Run(first) }()
		select {
		case <-restart:
		case <-ctx.Done():
		}
		end()
		<-done
		if ctx.Err() != nil {
			return nil
		}
		b := &testkit.Agent{Vsock: a.Vsock, Key: a.Key, Version: "1.2.3", Docker: docker}
		return wellBehaved(ctx, g, b)
	}, nil)
	r.mustPing()
	close(restart)
	for range 10 {
		r.mustPing()
	}
	if n := r.count(); n != 1 {
		t.Errorf("%d boots", n)
	}
}

func TestStopWhileStarting(t *testing.T) {
	r := newRig(t, func(ctx context.Context, _ *vmtest.GuestNet, _ *testkit.Agent) error { <-ctx.Done(); return nil }, nil)
	waiting, started := make(chan struct{}), make(chan error, 1)
	go func() {
		started <- r.Start(r.ctx(), func(s string) {
			if s == "waiting for the agent" {
				close(waiting)
			}
		})
	}()
	<-waiting
	if err := r.Stop(r.ctx(), client.StopOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-started; !errdefs.Is(err, errdefs.Canceled) {
		t.Errorf("start: %v", err)
	}
	if s := r.mustStatus(); s.State != client.Stopped || s.Error != "" {
		t.Errorf("%+v", s)
	}
}

func TestForcedStopOverAStuckOne(t *testing.T) {
	asked := make(chan struct{})
	r := newRig(t, func(ctx context.Context, _ *vmtest.GuestNet, a *testkit.Agent) error {
		a.Shutdown = func(ctx context.Context, _ control.Shutdown) error { close(asked); <-ctx.Done(); return nil }
		_ = a.Run(ctx)
		return nil
	}, nil)
	r.mustPing()
	gentle := make(chan error, 1)
	go func() { gentle <- r.Stop(r.ctx(), client.StopOptions{Timeout: time.Hour}, nil) }()
	<-asked
	if err := r.Stop(r.ctx(), client.StopOptions{Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-gentle; err != nil {
		t.Fatal(err)
	}
	if s := r.mustStatus(); s.State != client.Stopped {
		t.Errorf("%+v", s)
	}
}

func TestQuit(t *testing.T) {
	r := newRig(t, wellBehaved, nil)
	r.mustPing()
	if err := r.Quit(r.ctx(), client.StopOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	// All is let go of: another dhowd can have the machine at once.
	lock, err := config.Lock(r.layout.LockFile())
	if err != nil {
		t.Fatal(err)
	}
	_ = lock.Close()
	if err := r.Ping(r.ctx()); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("ping: %v", err)
	}
	if m, _ := r.last(); m.State() != "stopped" {
		t.Errorf("the machine is %s", m.State())
	}
}

func TestOneDhowdPerMachine(t *testing.T) {
	r := newRig(t, wellBehaved, nil)
	err := Run(r.ctx(), Options{Home: r.layout.Home})
	if !errdefs.Is(err, errdefs.Conflict) || !strings.Contains(err.Error(), "another dhowd") {
		t.Fatal(err)
	}
	if err := r.Ping(r.ctx()); err != nil {
		t.Fatalf("the first lost its socket: %v", err)
	}
}

func TestIdleStop(t *testing.T) {
	old := idleUnit
	idleUnit = 50 * time.Millisecond
	t.Cleanup(func() { idleUnit = old })
	var mu sync.Mutex
	containers := 1
	r := newRig(t, func(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error {
		a.Stats = func() control.Stats {
			mu.Lock()
			defer mu.Unlock()
			return control.Stats{RunningContainers: containers}
		}
		return wellBehaved(ctx, g, a)
	}, func(_ *Options, s *config.Settings) { s.IdleMinutes = 1 })
	r.mustPing()
	time.Sleep(300 * time.Millisecond) // what must not happen has no event
	if s := r.mustStatus(); s.State != client.Running {
		t.Fatalf("stopped with a running container: %+v", s)
	}
	mu.Lock()
	containers = 0
	mu.Unlock()
	r.awaitState(client.Stopped)
	r.mustPing()
}

func TestBadRequests(t *testing.T) {
	r := newRig(t, wellBehaved, nil)
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", r.layout.DaemonSocket())
	}}}
	for path, want := range map[string]int{"/v1/nothing": 404, "/v1/stop?force=2": 400, "/v1/stop?timeout=x": 400, "/v1/quit?timeout=-1": 400} {
		resp, err := c.Post("http://d"+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		var e client.Event
		err = json.NewDecoder(resp.Body).Decode(&e)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != want || e.Error == "" {
			t.Errorf("%s: %s, %+v, %v", path, resp.Status, e, err)
		}
	}
}

func TestFilesAreTheUsersOwn(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes: the home directory's access list protects it")
	}
	r := newRig(t, wellBehaved, nil)
	r.mustPing()
	for path, want := range map[string]os.FileMode{
		filepath.Dir(r.layout.DockerSocket()): 0o700, r.layout.MachineDir(): 0o700, r.layout.DockerSocket(): 0o600,
		r.layout.DaemonSocket(): 0o600, r.layout.DataDisk(): 0o600, r.layout.LogFile(): 0o600, r.configs[0].NetSocket: 0o600,
	} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, st.Mode().Perm(), err, want)
		}
	}
}
