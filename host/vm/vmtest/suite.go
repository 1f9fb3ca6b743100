package vmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"dhow/host/vm"
	"dhow/host/vm/vmtest/probe"
)

// patience bounds every wait of the suite. A guest under emulation on a busy
// machine takes many seconds to boot.
const patience = 90 * time.Second

// New makes a machine, not started, with the directory dir (which exists),
// whose guest runs package probe.
type New func(t *testing.T, dir string) vm.Machine

// Run is the conformance suite of vm.Machine: one call per driver. It looks at
// the whole process (goroutines, open files, child processes), so nothing else
// may run beside it.
func Run(t *testing.T, newMachine New) {
	for _, c := range []struct {
		name string
		test func(*testing.T, vm.Machine)
	}{
		{"Life", life},
		{"Crash", crash},
		{"StopForced", stopForced},
		{"Kill", kill},
		{"KillBeforeStart", killBeforeStart},
		{"KillDuringStart", killDuringStart},
		{"StartCanceled", startCanceled},
		{"StartCanceledLater", startCanceledLater},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := shortDir(t)
			before := takeInventory()
			m := newMachine(t, dir)
			t.Cleanup(func() { _ = m.Kill() }) // of a test that failed half-way
			c.test(t, m)
			if !t.Failed() {
				before.check(t, dir)
			}
		})
	}
}

// shortDir is a test's directory with a path short enough for unix sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// boot starts m and waits until the probe serves. It returns the probe's
// connection, which lives as long as the guest, and the listener it came from.
func boot(t *testing.T, m vm.Machine) (net.Conn, net.Listener) {
	t.Helper()
	l, err := m.Listen(probe.PortUp) // before Start: allowed
	if err != nil {
		t.Fatalf("Listen before Start: %v", err)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatalf("Start: %v", err)
	}
	if s := m.State(); s != vm.Running {
		t.Fatalf("after Start the state is %s", s)
	}
	return accept(t, m, l), l
}

func accept(t *testing.T, m vm.Machine, l net.Listener) net.Conn {
	t.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		got <- result{c, err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			t.Fatalf("Accept: %v (the machine is %s: %v)", r.err, m.State(), m.Err())
		}
		return r.c
	case <-time.After(patience):
		_ = l.Close()
		t.Fatalf("nothing dialed within %s; the machine is %s", patience, m.State())
		return nil
	}
}

// dial connects to a port of the guest and bounds all that happens on the
// connection.
func dial(t *testing.T, m vm.Machine, port uint32) vm.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := m.Dial(ctx, port)
	if err != nil {
		t.Fatalf("Dial %d: %v", port, err)
	}
	return bounded(t, c)
}

func bounded(t *testing.T, c net.Conn) vm.Conn {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatalf("SetDeadline: %v", err)
	}
	full, ok := c.(vm.Conn)
	if !ok {
		t.Fatalf("%T has no CloseWrite", c)
	}
	return full
}

// tell sends the probe a command and returns its answer; it is "" when the
// connection ended instead.
func tell(t *testing.T, m vm.Machine, command string) string {
	t.Helper()
	c := dial(t, m, probe.PortCommand)
	defer c.Close()
	if _, err := fmt.Fprintln(c, command); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	answer, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer)
}

// ended waits for the machine's end.
func ended(t *testing.T, m vm.Machine) {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatalf("the machine has not ended within %s; it is %s", patience, m.State())
	}
	if s := m.State(); s != vm.Stopped {
		t.Errorf("after Done the state is %s", s)
	}
}

// refusesAll checks a machine that is not running.
func refusesAll(t *testing.T, m vm.Machine) {
	t.Helper()
	if c, err := m.Dial(t.Context(), probe.PortEcho); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Dial on a machine that is %s: %v, %v; want ErrNotRunning", m.State(), c, err)
	}
}

// dead checks that a connection of a machine that ended fails, and does not
// end as if the peer had said all it had to say, unless cleanly is allowed.
func dead(t *testing.T, c net.Conn, cleanly bool) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, c)
	if err == nil && !cleanly {
		t.Error("a connection of a machine that was killed ends with a clean EOF")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a connection of a machine that has ended still blocks")
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a connection of a machine that has ended still takes data")
	}
	_ = c.Close()
}
