package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/host/image"
	"dhow/host/vm"
	"dhow/host/vm/vmtest"
	"dhow/internal/testkit"
	"dhow/proto/control"
)

// rig is a running dhowd whose machines are in memory.
type rig struct {
	*client.Client
	t      *testing.T
	layout config.Layout
	image  string
	stop   func() error // ends dhowd as a signal does, and returns Run's error

	mu       sync.Mutex
	emulated bool // what the machines say
	boots    int
	machines []*vmtest.Memory
	agents   []*testkit.Agent
	configs  []vm.Config
}

// guest says what runs in each machine of a rig.
type guest func(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error

// wellBehaved runs the agent; its Shutdown powers the machine off after the
// answer.
func wellBehaved(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asked := make(chan struct{})
	a.Shutdown = func(context.Context, control.Shutdown) error { close(asked); return nil }
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	select {
	case <-asked:
		time.Sleep(20 * time.Millisecond) // for the answer to leave, as a guest's sync does
		cancel()
		<-done
		return nil
	case err := <-done:
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
}

// guestSide is a guest's network with the signature that Agent wants.
type guestSide struct{ g *vmtest.GuestNet }

func (s guestSide) Dial(_ context.Context, port uint32) (net.Conn, error) { return s.g.Dial(port) }
func (s guestSide) Listen(port uint32) (net.Listener, error)              { return s.g.Listen(port) }

// echo is a guest's docker: it answers pings and echoes what is not HTTP.
func docker(c net.Conn) {
	l := &oneConn{c: c, closed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("OK")) })
	s := &http.Server{Handler: mux, ConnState: func(_ net.Conn, st http.ConnState) {
		if st == http.StateClosed {
			l.close()
		}
	}}
	_ = s.Serve(l)
}

// oneConn is a listener of one connection.
type oneConn struct {
	c      net.Conn
	given  bool
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}
func (l *oneConn) close()         { l.once.Do(func() { close(l.closed) }) }
func (l *oneConn) Close() error   { l.close(); return nil }
func (l *oneConn) Addr() net.Addr { return l.c.LocalAddr() }

// emulatedMemory says that it is emulated by software.
type emulatedMemory struct{ *vmtest.Memory }

func (emulatedMemory) Acceleration() (name, why string) { return "tcg", "in memory, for tests" }

// writeImage makes a small image.
func writeImage(t *testing.T, dir string) {
	t.Helper()
	m := image.Manifest{Version: "1", Arch: "amd64", Cmdline: "quiet", Files: map[string]image.File{}}
	for _, name := range []string{image.Kernel, image.Initrd, image.Root} {
		sum := sha256.Sum256([]byte(name))
		m.Files[name] = image.File{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(name))}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := json.Marshal(m)
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// newRig runs a dhowd in a home of its own whose guests run g. set changes the
// settings or options first; nil for none.
func newRig(t *testing.T, g guest, set func(*Options, *config.Settings)) *rig {
	t.Helper()
	testkit.NoLeaks(t)
	l, err := config.NewLayout(testkit.ShortDir(t), "")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, layout: l, image: t.TempDir(), Client: client.New(l.DaemonSocket())}
	writeImage(t, r.image)
	o := Options{Home: l.Home, Version: "1.2.3", BootTimeout: 10 * time.Second,
		FindImage: func(string) (*image.Image, error) { return image.Open(r.image, "amd64") }}
	s := config.Settings{CPUs: 1, Memory: 1 << 30, DiskSize: 2 << 30}
	if set != nil {
		set(&o, &s)
	}
	if err := l.Make(); err != nil {
		t.Fatal(err)
	}
	if err := config.Save(l, s, config.ThisHost()); err != nil {
		t.Fatal(err)
	}
	o.NewMachine = func(_ string, c vm.Config) (vm.Machine, error) {
		var b control.Boot
		if err := json.Unmarshal(c.Boot, &b); err != nil {
			return nil, err
		}
		a := &testkit.Agent{Key: b.Key, Version: "1.2.3", Docker: docker}
		m := vmtest.NewMemory(c, func(ctx context.Context, n *vmtest.GuestNet) error {
			a.Vsock = guestSide{n}
			return g(ctx, n, a)
		})
		r.mu.Lock()
		defer r.mu.Unlock()
		r.boots++
		r.machines, r.agents, r.configs = append(r.machines, m), append(r.agents, a), append(r.configs, c)
		if r.emulated {
			return emulatedMemory{m}, nil
		}
		return m, nil
	}
	r.run(o)
	return r
}

func (r *rig) run(o Options) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	o.Ready = func() { close(ready) }
	go func() { done <- Run(ctx, o) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		r.t.Fatalf("dhowd did not start: %v", err)
	}
	var err error
	var once sync.Once
	r.stop = func() error {
		once.Do(func() {
			cancel()
			select {
			case err = <-done:
			case <-time.After(20 * time.Second):
				err = errors.New("dhowd did not end")
			}
		})
		return err
	}
	r.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			r.t.Errorf("dhowd: %v", err)
		}
		if r.t.Failed() {
			b, _ := os.ReadFile(r.layout.LogFile())
			r.t.Logf("dhowd.log:\n%s", b)
		}
	})
}

func (r *rig) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.boots
}

func (r *rig) last() (*vmtest.Memory, *testkit.Agent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.machines) - 1
	return r.machines[n], r.agents[n]
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

// ping sends a docker request on a connection of its own.
func (r *rig) ping() (*http.Response, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.layout.DockerSocket())
	}}, Timeout: 20 * time.Second}
	return c.Get("http://docker/_ping")
}

func (r *rig) mustPing() {
	r.t.Helper()
	resp, err := r.ping()
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		r.t.Fatalf("ping: %s", resp.Status)
	}
}

func (r *rig) mustStatus() client.Status {
	r.t.Helper()
	s, err := r.Status(r.ctx())
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// awaitState waits until the state is the given one.
func (r *rig) awaitState(want client.State) client.Status {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := r.mustStatus()
		if s.State == want {
			return s
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the machine is %s (%s), want %s", s.State, s.Error, want)
		}
	}
}
