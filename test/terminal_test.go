//go:build linux

package test

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// terminal is a command on a pseudo-terminal, as a person has it.
type terminal struct {
	t   *testing.T
	tty *os.File
	cmd *exec.Cmd

	mu   sync.Mutex
	seen bytes.Buffer
	more chan struct{} // has an element when seen has grown
	done chan struct{} // reading has ended
}

func (m *machine) terminal(cli string, args ...string) *terminal {
	m.t.Helper()
	x := &terminal{t: m.t, cmd: exec.Command(cli, args...), more: make(chan struct{}, 1), done: make(chan struct{})}
	x.cmd.Env = append(append([]string(nil), m.env...), "DOCKER_HOST="+m.socket(), "TERM=xterm")
	tty, err := pty.StartWithSize(x.cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		m.t.Fatal(err)
	}
	x.tty = tty
	go func() {
		defer close(x.done)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			x.mu.Lock()
			x.seen.Write(buf[:n])
			x.mu.Unlock()
			select {
			case x.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	m.t.Cleanup(func() {
		_ = x.cmd.Process.Kill()
		tty.Close()
		<-x.done
	})
	return x
}

func (x *terminal) text() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return strings.ReplaceAll(x.seen.String(), "\r", "")
}

func (x *terminal) send(s string) {
	x.t.Helper()
	if _, err := x.tty.WriteString(s); err != nil {
		x.t.Fatal(err)
	}
}

// expect waits until what was printed matches, and forgets it up to there.
func (x *terminal) expect(pattern string) string {
	x.t.Helper()
	re := regexp.MustCompile(pattern)
	timeout := time.After(time.Minute)
	for {
		if at := re.FindStringIndex(x.text()); at != nil {
			x.mu.Lock()
			defer x.mu.Unlock()
			all := strings.ReplaceAll(x.seen.String(), "\r", "")
			x.seen.Reset()
			x.seen.WriteString(all[at[1]:])
			return all[at[0]:at[1]]
		}
		select {
		case <-x.more:
		case <-x.done:
			if !re.MatchString(x.text()) {
				x.t.Fatalf("the command ended without printing %s:\n%s", pattern, x.text())
			}
		case <-timeout:
			x.t.Fatalf("nothing printed matches %s:\n%s", pattern, x.text())
		}
	}
}

// exit waits for the command's end.
func (x *terminal) exit() int {
	x.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- x.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		x.t.Fatalf("the command does not end:\n%s", x.text())
	}
	return x.cmd.ProcessState.ExitCode()
}

// testTerminal is `run -it`: a shell that knows the terminal's size, follows its
// changes, can be left and come back to, and gives its exit code.
func testTerminal(m *machine, cli string) {
	x := m.terminal(cli, "run", "-it", "--name", "tty", "dhow/hello", "sh")
	x.send("tty; stty size\n")
	x.expect(`/dev/pts/0\n24 80\n`)
	if err := pty.Setsize(x.tty, &pty.Winsize{Rows: 33, Cols: 99}); err != nil {
		m.t.Fatal(err)
	}
	// The client hears of the change by a signal and tells the engine: soon, but not at once.
	x.send("while [ \"$(stty size)\" != '33 99' ]; do sleep 0.1; done; echo resized\n")
	x.expect(`\nresized\n`)
	x.send("sh -c 'echo started; exec sleep 1000'\n")
	x.expect(`\nstarted\n`)
	x.send("\x03") // ctrl-c reaches the foreground process, not the client
	x.expect(`\^C\n`)
	x.send("echo interrupted: $?\n")
	x.expect(`interrupted: 130\n`)

	x.send("\x10\x11") // ctrl-p ctrl-q
	if code := x.exit(); code != 0 {
		m.t.Errorf("detach: exit code %d", code)
	}
	if state := m.ok("inspect", "--format", "{{.State.Running}}", "tty"); state != "true" {
		m.t.Errorf("after detach the container is running: %s", state)
	}
	y := m.terminal(cli, "attach", "tty")
	y.send("echo back $((40+2))\n")
	y.expect(`\nback 42\n`)
	y.send("exit 5\n")
	if code := y.exit(); code != 5 {
		m.t.Errorf("exit code %d, want 5:\n%s", code, y.text())
	}
	m.ok("rm", "tty")
}
