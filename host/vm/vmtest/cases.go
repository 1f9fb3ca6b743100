package vmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow/host/vm"
	"dhow/host/vm/vmtest/probe"
	"dhow/internal/errdefs"
)

// life is a machine's ordinary life, up to a power-off that Stop asks for.
func life(t *testing.T, m vm.Machine) {
	if s := m.State(); s != vm.Created {
		t.Errorf("a new machine is %s", s)
	}
	refusesAll(t, m)
	up, l := boot(t, m)
	if _, err := m.Listen(probe.PortUp); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen on a port in use: %v, want EADDRINUSE", err)
	}
	if err := m.Start(t.Context()); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a second Start: %v, want class Conflict", err)
	}
	if s := m.State(); s != vm.Running {
		t.Errorf("after a refused Start the state is %s", s)
	}
	if m.Err() != nil {
		t.Errorf("a running machine's Err is %v", m.Err())
	}
	if a, ok := m.(vm.Accelerated); ok {
		if name, why := a.Acceleration(); name == "" || (name == "tcg" && why == "") {
			t.Errorf("Acceleration = %q, %q", name, why)
		}
	}

	t.Run("Refused", func(t *testing.T) {
		if _, err := m.Dial(t.Context(), 9999); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Dial of a port that nobody serves: %v, want ECONNREFUSED", err)
		}
		if a := tell(t, m, probe.Dial+" 9999"); a == "ok" || a == "" {
			t.Errorf("the guest's dial of a port that nobody serves: %q", a)
		}
	})
	t.Run("EchoToGuest", func(t *testing.T) { echo(t, dial(t, m, probe.PortEcho), 1<<20) })
	t.Run("EchoToHost", func(t *testing.T) {
		l, err := m.Listen(9100) // while it runs
		if err != nil {
			t.Fatal(err)
		}
		if a := tell(t, m, probe.Dial+" 9100"); a != "ok" {
			t.Fatalf("the guest's dial: %q", a)
		}
		c := bounded(t, accept(t, m, l))
		if err := l.Close(); err != nil {
			t.Errorf("Close of a listener: %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept on a closed listener: %v, want net.ErrClosed", err)
		}
		echo(t, c, 1<<20) // what it accepted lives on
		l, err = m.Listen(9100)
		if err != nil {
			t.Fatalf("Listen on a port that was freed: %v", err)
		}
		_ = l.Close()
	})
	t.Run("Concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				c, err := m.Dial(t.Context(), probe.PortEcho)
				if err != nil {
					t.Errorf("Dial %d: %v", i, err)
					return
				}
				echo(t, bounded(t, c), 1000*i)
			})
		}
		wg.Wait()
	})
	t.Run("Deadlines", func(t *testing.T) { deadlines(t, m) })
	t.Run("DialCanceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if c, err := m.Dial(ctx, probe.PortEcho); !errors.Is(err, context.Canceled) {
			t.Errorf("Dial with a canceled context: %v, %v", c, err)
		}
	})

	open := dial(t, m, probe.PortSink)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := vm.Stop(ctx, m, func(context.Context) error { tell(t, m, probe.PowerOff); return nil }); err != nil {
		t.Errorf("Stop of a machine that obeys: %v", err)
	}
	ended(t, m)
	if m.Err() != nil {
		t.Errorf("after a power-off Err is %v", m.Err())
	}
	afterEnd(t, m, l, true, up, open)
}

// afterEnd checks what holds for every machine that has ended.
func afterEnd(t *testing.T, m vm.Machine, l net.Listener, cleanly bool, conns ...net.Conn) {
	t.Helper()
	for _, c := range conns {
		dead(t, c, cleanly)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after the end: %v, want net.ErrClosed", err)
	}
	_ = l.Close()
	refusesAll(t, m)
	if _, err := m.Listen(9200); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Listen after the end: %v, want ErrNotRunning", err)
	}
	if err := m.Start(t.Context()); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("Start after the end: %v, want class Conflict", err)
	}
	err := m.Err()
	if kerr := m.Kill(); kerr != nil {
		t.Errorf("Kill after the end: %v", kerr)
	}
	if !errors.Is(m.Err(), err) {
		t.Errorf("Kill after the end changes Err from %v to %v", err, m.Err())
	}
	if serr := vm.Stop(t.Context(), m, nil); !errors.Is(serr, err) {
		t.Errorf("Stop after the end: %v, want %v", serr, err)
	}
}

// echo sends size random bytes, ends the stream, and wants the same back with
// an end.
func echo(t *testing.T, c vm.Conn, size int) {
	t.Helper()
	defer c.Close()
	sent := make([]byte, size)
	_, _ = rand.Read(sent) // never fails (crypto/rand)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(sent); err != nil {
			t.Errorf("echo of %d bytes: %v", size, err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("echo of %d bytes: got %d back, %v", size, len(got), err)
	}
}

func deadlines(t *testing.T, m vm.Machine) {
	c := dial(t, m, probe.PortSink)
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read past its deadline: %v", err)
	}
	// Nobody reads there: credit runs out, and Write blocks.
	_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	for {
		if _, err := c.Write(make([]byte, 64<<10)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Write past its deadline: %v", err)
			}
			return
		}
	}
}

// crash is a guest that panics.
func crash(t *testing.T, m vm.Machine) {
	up, l := boot(t, m)
	tell(t, m, probe.Crash)
	ended(t, m)
	var exit *vm.ExitError
	if !errors.As(m.Err(), &exit) {
		t.Fatalf("after a crash Err is %v, want *ExitError", m.Err())
	}
	if !strings.Contains(exit.Reason, probe.CrashMark) || len(exit.Console) == 0 {
		t.Errorf("ExitError without the panic or the console's last lines: %v", exit)
	}
	afterEnd(t, m, l, false, up)
}

// stopForced is a guest that does not obey.
func stopForced(t *testing.T, m vm.Machine) {
	up, l := boot(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := vm.Stop(ctx, m, func(context.Context) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) || !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("Stop of a machine that does not obey: %v", err)
	}
	ended(t, m)
	if m.Err() != nil {
		t.Errorf("after Kill Err is %v", m.Err())
	}
	afterEnd(t, m, l, false, up)
}

func kill(t *testing.T, m vm.Machine) {
	up, l := boot(t, m)
	open := dial(t, m, probe.PortEcho)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := m.Kill(); err != nil {
				t.Errorf("Kill: %v", err)
			}
			select {
			case <-m.Done():
			default:
				t.Error("Kill returned before Done")
			}
		})
	}
	wg.Wait()
	ended(t, m)
	if m.Err() != nil {
		t.Errorf("after Kill Err is %v", m.Err())
	}
	afterEnd(t, m, l, false, up, open)
}

func killBeforeStart(t *testing.T, m vm.Machine) {
	l, err := m.Listen(probe.PortUp)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Errorf("Kill: %v", err)
	}
	ended(t, m)
	if m.Err() != nil {
		t.Errorf("Err is %v", m.Err())
	}
	afterEnd(t, m, l, true)
}

func killDuringStart(t *testing.T, m vm.Machine) {
	l, err := m.Listen(probe.PortUp)
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- m.Start(t.Context()) }()
	for deadline := time.Now().Add(patience); m.State() == vm.Created && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if err := m.Kill(); err != nil {
		t.Errorf("Kill: %v", err)
	}
	if err := <-started; err != nil && !errdefs.Is(err, errdefs.Canceled) { // nil: it was faster
		t.Errorf("Start: %v, want class Canceled", err)
	}
	ended(t, m)
	afterEnd(t, m, l, true)
}

func startCanceled(t *testing.T, m vm.Machine) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	startGivenUp(t, m, ctx)
}

func startCanceledLater(t *testing.T, m vm.Machine) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Millisecond)
	defer cancel()
	startGivenUp(t, m, ctx)
}

func startGivenUp(t *testing.T, m vm.Machine, ctx context.Context) {
	l, err := m.Listen(probe.PortUp)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Start(ctx)
	if err == nil { // it was faster, so ctx has nothing more to say
		if serr := m.Kill(); serr != nil {
			t.Error(serr)
		}
		afterEnd(t, m, l, true)
		return
	}
	if c := errdefs.ClassOf(err); c != errdefs.Canceled && c != errdefs.Unavailable {
		t.Errorf("Start: class %s of %v", c, err)
	}
	if !errors.Is(err, ctx.Err()) {
		t.Errorf("Start: %v does not wrap %v", err, ctx.Err())
	}
	ended(t, m)
	if !errors.Is(m.Err(), err) {
		t.Errorf("Err is %v, want what Start returned: %v", m.Err(), err)
	}
	afterEnd(t, m, l, true)
}
