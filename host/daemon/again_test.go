package daemon

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/host/vm/vmtest"
	"dhow/internal/testkit"
)

const lockup = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [modprobe:42]"

// newHangingRig is a rig whose first n boots hang.
func newHangingRig(t *testing.T, n int32, emulated bool, timeout time.Duration) *rig {
	var boots atomic.Int32
	r := newRig(t, func(ctx context.Context, g *vmtest.GuestNet, a *testkit.Agent) error {
		if boots.Add(1) > n {
			return wellBehaved(ctx, g, a)
		}
		g.Console([]byte("[   30.1] " + lockup + "\n[   30.2] Modules linked in:\n"))
		<-ctx.Done()
		return nil
	}, func(o *Options, _ *config.Settings) { o.HangTimeout, o.BootTimeout = 200*time.Millisecond, timeout })
	r.emulated = emulated
	return r
}

func TestAnEmulatedGuestThatHangsIsBootedOnceMore(t *testing.T) {
	r := newHangingRig(t, 1, true, 10*time.Second)
	var steps []string
	if err := r.Start(r.ctx(), func(s string) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	if n := r.count(); n != 2 {
		t.Errorf("%d boots", n)
	}
	if !slices.ContainsFunc(steps, func(s string) bool { return strings.Contains(s, "once more") }) {
		t.Errorf("steps %q", steps)
	}
	if s := r.mustStatus(); s.State != client.Running || s.Boot < int64(200*time.Millisecond) {
		t.Errorf("%s after %d ns: the first try counts too", s.State, s.Boot)
	}
	r.mustPing()
	if r.machines[0].State() != "stopped" {
		t.Errorf("the first machine is %s", r.machines[0].State())
	}
	log, err := os.ReadFile(r.layout.LogFile())
	if err != nil || !strings.Contains(string(log), "level=WARN") || !strings.Contains(string(log), lockup) {
		t.Errorf("the log does not say why (%v):\n%s", err, log)
	}
}

func TestAGuestThatHangsTwiceFails(t *testing.T) {
	r := newHangingRig(t, 2, true, 500*time.Millisecond)
	if err := r.Start(r.ctx(), nil); err == nil || !strings.Contains(err.Error(), "did not answer in 500ms") || !strings.Contains(err.Error(), lockup) {
		t.Errorf("start: %v", err)
	}
	if n := r.count(); n != 2 {
		t.Errorf("%d boots", n)
	}
	if s := r.mustStatus(); s.State != client.Failed {
		t.Errorf("%s", s.State)
	}
}

func TestOnlyEmulatedGuestsAreBootedAgain(t *testing.T) {
	r := newHangingRig(t, 1, false, 500*time.Millisecond)
	if err := r.Start(r.ctx(), nil); err == nil || !strings.Contains(err.Error(), "did not answer in 500ms") {
		t.Errorf("start: %v", err)
	}
	if n := r.count(); n != 1 {
		t.Errorf("%d boots", n)
	}
}

func TestAStopEndsTheFirstTry(t *testing.T) {
	r := newHangingRig(t, 1, true, 10*time.Second)
	started := make(chan error, 1)
	waiting := make(chan struct{})
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
	if err := <-started; err == nil {
		t.Error("started")
	}
	if n := r.count(); n != 1 {
		t.Errorf("%d boots", n)
	}
}
