//go:build linux

package engine

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"dhow/internal/errdefs"
)

func (w *world) exec(id string, cmd ...string) string {
	w.t.Helper()
	x, err := w.ExecCreate(w.t.Context(), id, ExecOptions{ExecCreateRequest: container.ExecCreateRequest{Cmd: cmd}})
	if err != nil {
		w.t.Fatal(err)
	}
	return x
}

// known returns how many executions the engine holds.
func (w *world) known() int {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return len(w.execs) + len(w.past)
}

func TestARemovalBesideExecsThatEndLeavesNone(t *testing.T) {
	w := newWorld(t)
	killed := make(chan struct{})
	w.runtime.programs["main"] = func(p *proc) int { <-p.signals; close(killed); return 137 }
	w.runtime.programs["beside"] = func(*proc) int { <-killed; return 137 }
	id := w.create("", container.HostConfig{}, "main")
	w.start(id)
	var begun sync.WaitGroup
	for range 50 {
		// One has ended long before, one was never started, one ends with its container.
		ended, _, x := w.exec(id, "true"), w.exec(id, "true"), w.exec(id, "beside")
		begun.Go(func() {
			for _, x := range []string{ended, x} {
				if err := w.ExecStart(t.Context(), x, ExecStartOptions{Detach: true}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	begun.Wait()
	if err := w.ContainerRemove(t.Context(), id, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if n := w.known(); n != 0 {
		t.Errorf("%d are left", n)
	}
}

func TestAnExecThatEndedIsForgottenAfterAWhile(t *testing.T) {
	w := newWorld(t)
	id := w.create("", container.HostConfig{}, "sleep")
	w.start(id)
	old, young := w.exec(id, "true"), w.exec(id, "nosuch")
	if err := w.ExecStart(t.Context(), old, ExecStartOptions{Detach: true}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); w.known() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
	}
	if err := w.ExecStart(t.Context(), young, ExecStartOptions{Detach: true}); err == nil {
		t.Fatal("no error")
	}
	w.mu.Lock()
	w.past[0].at = time.Now().Add(-execKept)
	w.mu.Unlock()
	if in, err := w.ExecInspect(t.Context(), old); err != nil || in.ExitCode == nil || *in.ExitCode != 0 {
		t.Errorf("%+v, %v", in, err)
	}
	fresh := w.exec(id, "true")
	_, err := w.ExecInspect(t.Context(), old)
	wantErr(t, err, errdefs.NotFound, "No such exec instance: "+old)
	for _, x := range []string{young, fresh} {
		if _, err := w.ExecInspect(t.Context(), x); err != nil {
			t.Error(err)
		}
	}
}
