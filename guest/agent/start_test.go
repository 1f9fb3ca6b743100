//go:build linux

package agent_test

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

func TestKernelInit(t *testing.T) {
	m := newMachine(t)
	m.load()
	yes := true
	t.Run("it is PID 1 and the exit code is the program's", func(t *testing.T) {
		out, errs, code, err := m.run(sh("cat /proc/1/comm; echo $$; exit 5"), container.HostConfig{Init: &yes}, nil)
		if f := strings.Fields(out); err != nil || code != 5 || len(f) != 2 || f[0] != "docker-init" || f[1] == "1" {
			t.Errorf("%q %q %d %v", out, errs, code, err)
		}
	})
	t.Run("it reaps", func(t *testing.T) {
		// The inner shell dies before its child, which so becomes init's.
		out, errs, _, err := m.run(sh(`sh -c 'sleep 0.1 & echo $!' > /tmp/pid; sleep 0.5; if [ -d /proc/$(cat /tmp/pid) ]; then echo zombie; else echo reaped; fi`), container.HostConfig{Init: &yes}, nil)
		if out != "reaped\n" || err != nil {
			t.Errorf("%q %q %v", out, errs, err)
		}
	})
	for name, c := range map[string]struct {
		init bool
		code int
	}{"it forwards": {true, 143}, "without it, PID 1 is deaf": {false, 137}} {
		t.Run(name, func(t *testing.T) {
			id := m.create(container.Config{Cmd: []string{"sleep", "1000"}}, container.HostConfig{Init: &c.init})
			if _, err := m.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
			// The program handles no signal: only as PID 1 it would be deaf to this one.
			wait, begun := 1, time.Now()
			if _, err := m.ContainerStop(t.Context(), id, client.ContainerStopOptions{Timeout: &wait}); err != nil {
				t.Fatal(err)
			}
			in, err := m.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{})
			if err != nil || in.Container.State.ExitCode != c.code {
				t.Errorf("%+v %v after %v", in.Container.State, err, time.Since(begun))
			}
			if h := in.Container.HostConfig; h.Init == nil || *h.Init != c.init {
				t.Errorf("inspect shows %v", h.Init)
			}
		})
	}
	t.Run("a missing program", func(t *testing.T) {
		_, _, _, err := m.run(container.Config{Cmd: []string{"nosuch"}}, container.HostConfig{Init: &yes}, nil)
		if err == nil || !strings.Contains(err.Error(), `exec: "nosuch": executable file not found in $PATH`) {
			t.Errorf("%v", err)
		}
	})
}
