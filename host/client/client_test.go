package client_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/host/daemon"
	"dhow/host/image"
	"dhow/internal/errdefs"
	"dhow/internal/testkit"
)

// The test binary is its own dhowd: with asDhowd set it is the program that
// EnsureDaemon starts.
const asDhowd = "DHOW_TEST_DHOWD"

func TestMain(m *testing.M) {
	switch os.Getenv(asDhowd) {
	case "":
		os.Exit(m.Run())
	case "dies":
		os.Exit(3)
	case "panics":
		panic("the test's dhowd")
	}
	o := daemon.Options{Version: "test", FindImage: func(string) (*image.Image, error) {
		return nil, errdefs.New(errdefs.NotFound, "no image in this test")
	}}
	for i, a := range os.Args {
		switch a {
		case "--home":
			o.Home = os.Args[i+1]
		case "--machine":
			o.Machine = os.Args[i+1]
		}
	}
	if os.Getenv(asDhowd) == "slow" {
		time.Sleep(100 * time.Millisecond)
	}
	o.Ready = func() {
		_, _ = os.Stdout.WriteString(client.ReadyLine + "\n")
		_ = os.Stdout.Close()
	}
	if err := daemon.Run(context.Background(), o); err != nil {
		_, _ = os.Stdout.WriteString(client.ErrorPrefix + errdefs.Sentence(err) + "\n")
		os.Exit(1)
	}
	os.Exit(0)
}

func layout(t *testing.T, mode string) config.Layout {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DHOWD", exe)
	t.Setenv(asDhowd, mode)
	l, err := config.NewLayout(testkit.ShortDir(t), "")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return c
}

// ensure is EnsureDaemon, with the daemon ended after the test.
func ensure(t *testing.T, l config.Layout) *client.Client {
	t.Helper()
	c, err := client.EnsureDaemon(ctx(t), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.Ping(ctx(t)) == nil {
			if err := c.Quit(ctx(t), client.StopOptions{}, nil); err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

func pid(t *testing.T, c *client.Client) int {
	t.Helper()
	s, err := c.Status(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	return s.PID
}

func TestEnsureStartsOne(t *testing.T) {
	l := layout(t, "slow")
	var mu sync.Mutex
	pids := map[int]bool{}
	var wg sync.WaitGroup
	for range 8 { // they race
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := client.EnsureDaemon(ctx(t), l)
			if err != nil {
				t.Error(err)
				return
			}
			s, err := c.Status(ctx(t))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			pids[s.PID] = true
			mu.Unlock()
		}()
	}
	wg.Wait()
	c := ensure(t, l)
	if len(pids) != 1 || !pids[pid(t, c)] || pids[os.Getpid()] {
		t.Fatalf("dhowd's pids %v", pids)
	}
}

func TestKilledDhowdDoesNotBlockTheNext(t *testing.T) {
	l := layout(t, "plain")
	first := pid(t, ensure(t, l))
	p, err := os.FindProcess(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	// Its socket file stays; it refuses once the process has gone. The process
	// is our child, so it must be reaped too.
	_, _ = p.Wait()
	if _, err := os.Stat(l.DaemonSocket()); err != nil {
		t.Fatalf("kill -9 left no stale socket to test with: %v", err)
	}
	if err := client.New(l.DaemonSocket()).Ping(ctx(t)); !errdefs.Is(err, errdefs.Unavailable) {
		t.Fatalf("ping: %v", err)
	}
	if second := pid(t, ensure(t, l)); second == first {
		t.Fatal("the same pid")
	}
}

func TestQuitThenEnsure(t *testing.T) {
	l := layout(t, "plain")
	for range 3 { // at once: the one before has let go of everything
		c := ensure(t, l)
		if err := c.Quit(ctx(t), client.StopOptions{}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestErrorsOfAStartReachTheCaller(t *testing.T) {
	l := layout(t, "plain")
	c := ensure(t, l)
	var steps []string
	err := c.Start(ctx(t), func(s string) { steps = append(steps, s) })
	if !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "no image in this test") || len(steps) != 1 {
		t.Fatalf("%v, steps %q", err, steps)
	}
	s, err := c.Status(ctx(t))
	if err != nil || s.State != client.Failed || !strings.Contains(s.Error, "no image") {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestEnsureSaysWhyNot(t *testing.T) {
	l := layout(t, "dies")
	if _, err := client.EnsureDaemon(ctx(t), l); !errdefs.Is(err, errdefs.Unavailable) || !strings.Contains(err.Error(), l.LogFile()) {
		t.Errorf("a dhowd that dies: %v", err)
	}
	// The lock is held by something that doesn't answer.
	l = layout(t, "plain")
	if err := l.Make(); err != nil {
		t.Fatal(err)
	}
	lock, err := config.Lock(l.LockFile())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := client.EnsureDaemon(ctx(t), l); err == nil || !strings.Contains(err.Error(), "another dhowd") {
		t.Errorf("a locked home: %v", err)
	}
	t.Setenv("DHOWD", "")
	if _, err := client.EnsureDaemon(ctx(t), layoutNoEnv(t)); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "DHOWD") {
		t.Errorf("no dhowd: %v", err)
	}
}

// A trace survives the starts that follow: the first command that notices the
// crash starts dhowd again.
func TestCrashTraceIsKept(t *testing.T) {
	l := layout(t, "panics")
	if _, err := client.EnsureDaemon(ctx(t), l); err == nil {
		t.Fatal("a dhowd that panics is ready")
	}
	t.Setenv(asDhowd, "plain")
	for range 2 {
		c := ensure(t, l)
		if err := c.Quit(ctx(t), client.StopOptions{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(l.LogFile() + ".stderr.1")
	if err != nil || !strings.Contains(string(b), "the test's dhowd") {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(l.LogFile() + ".stderr"); err != nil || len(b) > 0 {
		t.Errorf("the present dhowd's: %q, %v", b, err)
	}
}

func layoutNoEnv(t *testing.T) config.Layout {
	l, err := config.NewLayout(testkit.ShortDir(t), "")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCancel(t *testing.T) {
	l := layoutNoEnv(t)
	if err := l.Make(); err != nil {
		t.Fatal(err)
	}
	// Another client is starting dhowd and takes its time.
	lock, err := config.Lock(l.SpawnLock())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	c, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.EnsureDaemon(c, l); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestNotDhowd(t *testing.T) {
	at := filepath.Join(testkit.ShortDir(t), "s")
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
			_ = c.(*net.UnixConn).CloseWrite()
			_, _ = c.Read(make([]byte, 4096))
			_ = c.Close()
		}
	}()
	defer func() { _ = l.Close(); <-done }()
	if _, err := client.New(at).Status(ctx(t)); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal(err)
	}
}
