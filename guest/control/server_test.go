//go:build linux

package control

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	proto "dhow/proto/control"
)

func serve(t *testing.T, s *Server) *proto.Client {
	t.Helper()
	host, guest := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), guest) }()
	c := proto.NewClient(host)
	t.Cleanup(func() {
		_ = c.Close()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return c
}

func TestHello(t *testing.T) {
	c := serve(t, &Server{
		Version: "1.2.3",
		Steps:   func() []proto.Step { return []proto.Step{{Name: "agent", At: time.Second}} },
	})
	var w proto.Welcome
	if err := c.Call(t.Context(), proto.VerbHello, proto.Hello{Protocol: proto.Protocol, Version: "9"}, &w); err != nil {
		t.Fatal(err)
	}
	if w.Protocol != proto.Protocol || w.Version != "1.2.3" || w.AgentPID != os.Getpid() || w.Kernel == "" || len(w.BootID) != 36 || len(w.Steps) != 1 {
		t.Errorf("welcome %+v", w)
	}
}

func TestPowerOffFollowsTheAnswer(t *testing.T) {
	var grace time.Duration
	off := make(chan struct{})
	c := serve(t, &Server{
		Stop:     func(_ context.Context, g time.Duration) error { grace = g; return nil },
		PowerOff: func() { close(off) },
	})
	if err := c.Call(t.Context(), proto.VerbShutdown, proto.Shutdown{Grace: 3 * time.Second}, nil); err != nil {
		t.Fatal(err)
	}
	<-off
	if grace != 3*time.Second {
		t.Errorf("grace %v", grace)
	}
}

func TestAStopThatFailsDoesNotPowerOff(t *testing.T) {
	c := serve(t, &Server{
		Stop:     func(context.Context, time.Duration) error { return errors.New("stuck") },
		PowerOff: func() { t.Error("powered off") },
	})
	if err := c.Call(t.Context(), proto.VerbShutdown, proto.Shutdown{}, nil); err == nil {
		t.Error("no error")
	}
}

func TestSetClock(t *testing.T) {
	var set time.Time
	c := serve(t, &Server{SetClock: func(v time.Time) error { set = v; return nil }})
	want := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	if err := c.Call(t.Context(), proto.VerbSetClock, proto.SetClock{Time: want}, nil); err != nil {
		t.Fatal(err)
	}
	if !set.Equal(want) {
		t.Errorf("set to %v", set)
	}
	if err := c.Call(t.Context(), proto.VerbSetClock, proto.SetClock{}, nil); err == nil {
		t.Error("the zero time was taken")
	}
}
