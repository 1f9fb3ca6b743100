package vm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/host/vm"
	"dhow/host/vm/vmtest"
	"dhow/internal/errdefs"
)

func TestLifeRefusesWhatTheTableDoesNotHave(t *testing.T) {
	for _, c := range []struct {
		path []vm.State
		bad  vm.State
	}{
		{nil, vm.Running},
		{[]vm.State{vm.Stopping}, vm.Starting},
		{[]vm.State{vm.Starting}, vm.Starting},
		{[]vm.State{vm.Starting, vm.Running}, vm.Starting},
		{[]vm.State{vm.Starting, vm.Stopping}, vm.Running},
		{[]vm.State{vm.Starting, vm.Running, vm.Stopping, vm.Stopped}, vm.Starting},
	} {
		l := vm.NewLife()
		for _, s := range c.path {
			if err := l.To(s); err != nil {
				t.Fatal(err)
			}
		}
		was := l.State()
		if err := l.To(c.bad); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("%v to %s: %v, want class Conflict", c.path, c.bad, err)
		}
		if l.State() != was {
			t.Errorf("a refused transition changes the state from %s to %s", was, l.State())
		}
	}
}

func TestLifeEndsOnce(t *testing.T) {
	l := vm.NewLife()
	first := errors.New("first")
	l.End(first)
	l.End(errors.New("second"))
	select {
	case <-l.Done():
	default:
		t.Error("Done is open")
	}
	if !errors.Is(l.Err(), first) || l.State() != vm.Stopped {
		t.Errorf("Err %v, state %s", l.Err(), l.State())
	}
}

func TestWriteInitrdAppendsAnArchiveTheKernelReads(t *testing.T) {
	dir := t.TempDir()
	for size := range 5 { // every alignment of the first archive
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, fmt.Sprint("dst", size))
		if err := os.WriteFile(src, bytes.Repeat([]byte("i"), size), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := vm.WriteInitrd(dst, src, []byte(`{"key":1}`)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dst)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		b, err := os.ReadFile(dst)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(b, bytes.Repeat([]byte("i"), size)) || len(b)%4 != 0 {
			t.Fatalf("size %d: %q", size, b)
		}
		start := (size + 3) &^ 3
		name, mode, data, rest := parseNewc(t, b[start:])
		if name != "boot.json" || mode != 0o100600 || string(data) != `{"key":1}` {
			t.Errorf("entry %q %o %q", name, mode, data)
		}
		if name, _, _, rest := parseNewc(t, rest); name != "TRAILER!!!" || len(rest) != 0 {
			t.Errorf("then %q and %d bytes", name, len(rest))
		}
		if err := vm.WriteInitrd(dst, src, nil); !errors.Is(err, os.ErrExist) {
			t.Errorf("over an existing file: %v", err)
		}
	}
	if err := vm.WriteInitrd(filepath.Join(dir, "x"), filepath.Join(dir, "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing source: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
		t.Error("a failed write leaves its file")
	}
}

// parseNewc reads one entry as init/initramfs.c does.
func parseNewc(t *testing.T, b []byte) (name string, mode uint64, data, rest []byte) {
	t.Helper()
	field := func(i int) uint64 {
		v, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if string(b[:6]) != "070701" {
		t.Fatalf("magic %q", b[:6])
	}
	align := func(n uint64) uint64 { return (n + 3) &^ 3 }
	size, nameSize := field(6), field(11)
	name = string(b[110 : 110+nameSize-1])
	at := align(110 + nameSize)
	return name, field(1), b[at : at+size], b[min(align(at+size), uint64(len(b))):]
}

func TestConsoleKeepsTheTailAndBoundsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	c, err := vm.OpenConsole(path)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 1023) + "\n"
	for range 12 << 10 {
		_, _ = c.Write([]byte(line))
	}
	_, _ = c.Write([]byte("\x1b[31mlast\x07 but one\r\nlast\n"))
	if got := c.Tail(2); len(got) != 2 || got[0] != "[31mlast but one" || got[1] != "last" {
		t.Errorf("tail %q", got)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("after\n"))
	if got := c.Tail(1); got[0] != "after" {
		t.Errorf("tail after Close %q", got)
	}
	total := int64(0)
	files, _ := filepath.Glob(path + "*")
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if len(files) != 2 || total > 9<<20 {
		t.Errorf("12 MiB of console left %d bytes in %q", total, files)
	}
}

func TestOpenConsoleKeepsTheLastBoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	for _, boot := range []string{"first", "second"} {
		c, err := vm.OpenConsole(path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(boot))
		_ = c.Close()
	}
	for name, want := range map[string]string{path: "second", path + ".1": "first"} {
		if b, err := os.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func memory(t *testing.T, guest vmtest.Guest) *vmtest.Memory {
	t.Helper()
	m := vmtest.NewMemory(vm.Config{Dir: t.TempDir(), Kernel: "none", CPUs: 1, Memory: 1 << 30, Log: slog.New(slog.DiscardHandler)}, guest)
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	return m
}

func idle(ctx context.Context, _ *vmtest.GuestNet) error { <-ctx.Done(); return nil }

func TestStopWhenTheGuestEndsWhileItIsAsked(t *testing.T) {
	power := make(chan struct{})
	m := memory(t, func(ctx context.Context, g *vmtest.GuestNet) error { <-power; return nil })
	err := vm.Stop(t.Context(), m, func(ctx context.Context) error {
		close(power)
		<-ctx.Done() // ends because the machine did
		return ctx.Err()
	})
	if err != nil {
		t.Errorf("Stop: %v", err)
	}
}

func TestStopKillsWhenAskingFails(t *testing.T) {
	m := memory(t, idle)
	cause := errors.New("no answer")
	begin := time.Now()
	err := vm.Stop(t.Context(), m, func(context.Context) error { return cause })
	if !errors.Is(err, cause) {
		t.Errorf("Stop: %v", err)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("it took %s", d)
	}
	if m.State() != vm.Stopped {
		t.Errorf("the machine is %s", m.State())
	}
}

func TestStopReturnsTheCrash(t *testing.T) {
	m := memory(t, func(ctx context.Context, g *vmtest.GuestNet) error { return errors.New("boom") })
	<-m.Done()
	var exit *vm.ExitError
	if err := vm.Stop(t.Context(), m, nil); !errors.As(err, &exit) {
		t.Errorf("Stop: %v, want *ExitError", err)
	}
}
