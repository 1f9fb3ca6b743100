package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// monitor plays QEMU's side: it greets, then answers each command by answer.
func monitor(t *testing.T, greeting string, answer func(command string) string) (*qmp, chan qmpEvent) {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer theirs.Close()
		if _, err := fmt.Fprintln(theirs, greeting); err != nil {
			return
		}
		for s := bufio.NewScanner(theirs); s.Scan(); {
			a := answer(s.Text())
			if a == "" {
				return
			}
			if _, err := fmt.Fprintln(theirs, a); err != nil {
				return
			}
		}
	}()
	events := make(chan qmpEvent, 10)
	q := newQMP(ours, func(e qmpEvent) { events <- e })
	t.Cleanup(func() { _ = q.close(); <-served })
	return q, events
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`

func TestQMP(t *testing.T) {
	var commands []string
	q, events := monitor(t, greeting, func(c string) string {
		commands = append(commands, c)
		switch {
		case strings.Contains(c, "query-status"):
			return `{"timestamp": {"seconds": 1}, "event": "RESUME"}` + "\n" + `{"return": {"status": "prelaunch", "running": false}}`
		case strings.Contains(c, "cont"):
			return `{"error": {"class": "GenericError", "desc": "no disk"}}`
		}
		return `{"return": {}}`
	})
	if err := q.handshake(t.Context()); err != nil || q.version != [2]int{7, 2} {
		t.Fatalf("handshake: %v, version %v", err, q.version)
	}
	var status struct{ Status string }
	if err := q.execute(t.Context(), "query-status", &status); err != nil || status.Status != "prelaunch" {
		t.Errorf("query-status: %+v, %v", status, err)
	}
	if e := <-events; e.Name != "RESUME" {
		t.Errorf("event %+v", e)
	}
	if err := q.execute(t.Context(), "cont", nil); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("cont: %v", err)
	}
	if got, want := strings.Join(commands, " "), `{"execute":"qmp_capabilities"} {"execute":"query-status"} {"execute":"cont"}`; got != want {
		t.Errorf("commands %s, want %s", got, want)
	}
}

func TestQMPEnds(t *testing.T) {
	q, _ := monitor(t, greeting, func(string) string { return "" })
	if err := q.handshake(t.Context()); !errors.Is(err, errQMPEnded) {
		t.Errorf("a monitor that closes: %v", err)
	}
}

func TestQMPRefusesAnotherProtocol(t *testing.T) {
	q, _ := monitor(t, `{"return": {}}`, func(string) string { return `{"return": {}}` })
	if err := q.handshake(t.Context()); err == nil {
		t.Error("no error without a greeting")
	}
	q, _ = monitor(t, `HTTP/1.1 400`, func(string) string { return "x" })
	if err := q.handshake(t.Context()); err == nil {
		t.Error("no error for what is not JSON")
	}
}

func TestQMPObeysTheContext(t *testing.T) {
	silent := make(chan struct{})
	q, _ := monitor(t, greeting, func(string) string { <-silent; return "" })
	defer close(silent)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := q.handshake(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("handshake with a silent QEMU: %v", err)
	}
}
