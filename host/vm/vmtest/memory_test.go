package vmtest_test

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"golang.org/x/net/nettest"

	"dhow/host/vm"
	"dhow/host/vm/vmtest"
	"dhow/host/vm/vmtest/probe"
)

func config(dir string) vm.Config {
	return vm.Config{Dir: dir, Kernel: "none", CPUs: 1, Memory: 1 << 30, Log: slog.New(slog.DiscardHandler)}
}

func TestMemoryConforms(t *testing.T) {
	vmtest.Run(t, func(_ *testing.T, dir string) vm.Machine {
		return vmtest.NewMemory(config(dir), func(ctx context.Context, g *vmtest.GuestNet) error { return probe.Serve(ctx, g) })
	})
}

func TestMemoryConnIsANetConn(t *testing.T) {
	accepted := make(chan net.Conn)
	listening := make(chan struct{})
	m := vmtest.NewMemory(config(t.TempDir()), func(ctx context.Context, g *vmtest.GuestNet) error {
		l, err := g.Listen(1)
		if err != nil {
			return err
		}
		close(listening)
		for {
			c, err := l.Accept()
			if err != nil {
				return nil
			}
			accepted <- c
		}
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	<-listening
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, err = m.Dial(t.Context(), 1)
		if err != nil {
			return nil, nil, nil, err
		}
		c2 = <-accepted
		return c1, c2, func() { _ = c1.Close(); _ = c2.Close() }, nil
	})
}
