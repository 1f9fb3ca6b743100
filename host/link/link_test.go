package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/errdefs"
	"dhow/internal/testkit"
	"dhow/proto/control"
)

var key = bytes.Repeat([]byte{3}, control.KeySize)

// rig is a link whose guest is a Vsock.
type rig struct {
	*Link
	v   *testkit.Vsock
	err chan error // Run's
	now *fakeClock
}

type fakeClock struct {
	mu    sync.Mutex
	wall  time.Time
	awake time.Duration
}

func (c *fakeClock) now() (time.Time, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall, c.awake
}

func (c *fakeClock) pass(awake, asleep time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.awake = c.wall.Add(awake+asleep), c.awake+awake
}

func start(t *testing.T) *rig {
	t.Helper()
	v := testkit.NewVsock(t)
	ready, err := v.Host().Listen(control.PortReady)
	if err != nil {
		t.Fatal(err)
	}
	now := &fakeClock{wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r := &rig{Link: New(Config{Key: key, Version: "1.2.3", Dial: v.Host().Dial, Log: testkit.Log(t), Now: now.now}), v: v, err: make(chan error, 1), now: now}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { r.err <- r.Run(ctx, ready) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-r.err:
		case <-time.After(10 * time.Second):
			t.Error("Run did not end")
		}
	})
	return r
}

// agent runs an agent until the returned function is called.
func (r *rig) agent(t *testing.T, a *testkit.Agent) (stop func()) {
	t.Helper()
	a.Vsock = r.v.Guest()
	if a.Key == nil {
		a.Key = key
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestHelloClockCallAndDial(t *testing.T) {
	testkit.NoLeaks(t)
	r := start(t)
	a := &testkit.Agent{Version: "1.2.3", Stats: func() control.Stats { return control.Stats{RunningContainers: 4} },
		Docker: func(c net.Conn) { _, _ = io.Copy(c, c) }}
	r.agent(t, a)
	w, err := r.Wait(soon(t))
	if err != nil || w.Kernel != "6.1.0-test" {
		t.Fatalf("%+v, %v", w, err)
	}
	if c := a.Clocks(); len(c) != 1 || !c[0].Equal(r.now.wall) {
		t.Fatalf("the clock was set to %v", c)
	}
	s, err := r.Stats(soon(t))
	if err != nil || s.RunningContainers != 4 {
		t.Fatalf("%+v, %v", s, err)
	}
	c, err := r.Dial(soon(t), control.PortDocker)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("hi"))
	var b [2]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "hi" {
		t.Fatalf("%q, %v", b, err)
	}
	if a.Hellos() != 1 {
		t.Errorf("%d hellos", a.Hellos())
	}
	// A call that is canceled costs its connection, not the next call.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.Stats(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := r.Stats(soon(t)); err != nil {
		t.Fatal(err)
	}
}

func TestClockIsSetAfterSleep(t *testing.T) {
	testkit.NoLeaks(t)
	r := start(t)
	a := &testkit.Agent{}
	r.agent(t, a)
	dial := func() {
		t.Helper()
		c, err := r.Dial(soon(t), control.PortDocker)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	dial()
	r.now.pass(20*time.Minute, 100*time.Millisecond)
	dial()
	if n := len(a.Clocks()); n != 1 {
		t.Fatalf("set %d times without a jump", n)
	}
	r.now.pass(time.Second, time.Hour) // the host slept
	dial()
	c := a.Clocks()
	if wall, _ := r.now.now(); len(c) != 2 || !c[1].Equal(wall) {
		t.Fatalf("clocks %v, now %v", c, wall)
	}
	r.now.pass(time.Second, -time.Minute) // somebody set it back
	dial()
	r.now.pass(2*time.Hour, 0) // drift
	dial()
	dial()
	if n := len(a.Clocks()); n != 4 {
		t.Fatalf("set %d times, want 4", n)
	}
}

func TestVersionMismatchNamesBoth(t *testing.T) {
	testkit.NoLeaks(t)
	r := start(t)
	r.agent(t, &testkit.Agent{Version: "0.9.0", Protocol: control.Protocol + 1})
	_, err := r.Wait(soon(t))
	if !errors.As(err, new(*VersionError)) || !strings.Contains(err.Error(), "1.2.3") || !strings.Contains(err.Error(), "0.9.0") {
		t.Fatalf("error %v", err)
	}
	if err := <-r.err; !errors.As(err, new(*VersionError)) {
		t.Fatalf("Run: %v", err)
	}
	r.err <- nil // for the cleanup
}

func TestAgentRestart(t *testing.T) {
	testkit.NoLeaks(t)
	r := start(t)
	stop := r.agent(t, &testkit.Agent{Version: "a"})
	if _, err := r.Wait(soon(t)); err != nil {
		t.Fatal(err)
	}
	stop()
	for r.Connected() { // its end reaches us by the ready connection
		time.Sleep(time.Millisecond)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Dial(short, control.PortDocker); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("dial without agent: %v", err)
	}
	if err := r.Shutdown(soon(t), 0); !errdefs.Is(err, errdefs.Unavailable) {
		t.Fatalf("shutdown without agent: %v", err)
	}
	// A dial that begins while there is no agent is served by the next.
	got := make(chan error, 1)
	go func() {
		c, err := r.Dial(soon(t), control.PortDocker)
		if err == nil {
			_ = c.Close()
		}
		got <- err
	}()
	b := &testkit.Agent{Version: "b"}
	r.agent(t, b)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if w, err := r.Wait(soon(t)); err != nil || w.Version != "b" {
		t.Fatalf("%+v, %v", w, err)
	}
	if len(b.Clocks()) != 1 {
		t.Error("the second agent's clock was not set")
	}
}

func TestStrangersAreNotTheAgent(t *testing.T) {
	testkit.NoLeaks(t)
	r := start(t)
	c, err := r.v.Guest().Dial(soon(t), control.PortReady)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := control.ProveGuest(c, bytes.Repeat([]byte{9}, control.KeySize), control.PortReady); !errors.Is(err, control.ErrPreamble) {
		t.Fatalf("admitted: %v", err)
	}
	if r.Connected() {
		t.Fatal("connected to a stranger")
	}
	r.agent(t, &testkit.Agent{})
	if _, err := r.Wait(soon(t)); err != nil {
		t.Fatal(err)
	}
}

// An agent that listens with another key: the host must not talk to it.
func TestImpostorOnPortControl(t *testing.T) {
	testkit.NoLeaks(t)
	r := start(t)
	l, err := r.v.Guest().Listen(control.PortControl)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refused := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = control.AdmitHost(c, bytes.Repeat([]byte{9}, control.KeySize), control.PortControl)
			_ = c.Close()
		}
		refused <- err
	}()
	ready, err := r.v.Guest().Dial(soon(t), control.PortReady)
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	if err := control.ProveGuest(ready, key, control.PortReady); err != nil {
		t.Fatal(err)
	}
	if err := <-refused; !errors.Is(err, control.ErrPreamble) {
		t.Fatal(err)
	}
	if r.Connected() {
		t.Fatal("connected to an impostor")
	}
}

func TestShutdown(t *testing.T) {
	testkit.NoLeaks(t)
	r := start(t)
	grace := make(chan time.Duration, 1)
	release := make(chan struct{})
	r.agent(t, &testkit.Agent{Shutdown: func(_ context.Context, s control.Shutdown) error {
		grace <- s.Grace
		<-release
		return nil
	}})
	if _, err := r.Wait(soon(t)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Shutdown(soon(t), 7*time.Second) }()
	if g := <-grace; g != 7*time.Second {
		t.Errorf("grace %v", g)
	}
	if _, err := r.Stats(soon(t)); err != nil { // not held up by the shutdown
		t.Error(err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
