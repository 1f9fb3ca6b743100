package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// withID makes reply, lines of JSON, the answer to command, as QEMU does: what is
// no event gets the command's id.
func withID(command, reply string) string {
	var c struct{ ID json.RawMessage }
	if json.Unmarshal([]byte(command), &c) != nil || c.ID == nil {
		return reply
	}
	lines := strings.Split(reply, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, `{"return"`) || strings.HasPrefix(l, `{"error"`) {
			lines[i] = `{"id": ` + string(c.ID) + `, ` + l[1:]
		}
	}
	return strings.Join(lines, "\n")
}

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
			if _, err := fmt.Fprintln(theirs, withID(s.Text(), a)); err != nil {
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
	if got, want := strings.Join(commands, " "), `{"execute":"qmp_capabilities","id":1} {"execute":"query-status","id":2} {"execute":"cont","id":3}`; got != want {
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

// The answer to a command that nobody waits for is not another command's.
func TestQMPAnswersAreTheirOwn(t *testing.T) {
	slow := make(chan struct{})
	q, _ := monitor(t, greeting, func(c string) string {
		switch {
		case strings.Contains(c, "query-block"):
			<-slow
			return `{"return": {"status": "stale"}}`
		case strings.Contains(c, "cont"):
			return `{"error": {"class": "GenericError", "desc": "stale"}}`
		case strings.Contains(c, "query-status"):
			return `{"return": {"status": "prelaunch"}}`
		}
		return `{"return": {}}`
	})
	if err := q.handshake(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := q.send("cont"); err != nil {
			t.Fatal(err)
		}
		var status struct{ Status string }
		if err := q.execute(t.Context(), "query-status", &status); err != nil || status.Status != "prelaunch" {
			t.Fatalf("after a command that was only sent: %+v, %v", status, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := q.execute(ctx, "query-block", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a silent QEMU: %v", err)
	}
	close(slow)
	var status struct{ Status string }
	if err := q.execute(t.Context(), "query-status", &status); err != nil || status.Status != "prelaunch" {
		t.Fatalf("after a command that was given up: %+v, %v", status, err)
	}
	if len(q.waiting) > 0 {
		t.Errorf("still waiting: %v", q.waiting)
	}
}
