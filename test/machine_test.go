//go:build linux

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/host/client"
	"dhow/internal/testkit"
)

// commandTimeout bounds one command of a test; a boot under emulation on a busy
// machine is the longest thing that one does.
const commandTimeout = 3 * time.Minute

// machine is a dhow home of its own, with its dhowd and VM.
type machine struct {
	t    *testing.T
	home string
	bin  string
	env  []string
}

// newMachine returns one that ends, with all its files, with the test.
func newMachine(t *testing.T) *machine {
	t.Helper()
	files := testkit.VM(t)
	home, err := os.MkdirTemp("", "dhow") // short: sockets live in it
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, home: home, bin: files.Bin}
	m.env = append(os.Environ(), "DHOW_HOME="+home, "DHOW_IMAGE="+files.Image, "DOCKER_CONFIG="+filepath.Join(home, "docker"),
		"DOCKER_HOST=", "DOCKER_CONTEXT=", "PATH="+files.Bin+":"+os.Getenv("PATH"))
	t.Cleanup(func() {
		if t.Failed() {
			m.showLogs()
		}
		m.t = t
		r := m.dhow("machine", "stop", "--force")
		if r.code != 0 {
			t.Errorf("machine stop: %s", r)
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return m
}

// in returns the machine for a subtest.
func (m *machine) in(t *testing.T) *machine {
	c := *m
	c.t = t
	return &c
}

func (m *machine) showLogs() {
	for _, name := range []string{"machines/default/console.log", "log/dhowd.log"} {
		b, err := os.ReadFile(filepath.Join(m.home, name))
		lines := strings.Split(string(b), "\n")
		m.t.Logf("%s (%v):\n%s", name, err, strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

func (m *machine) socket() string { return "unix://" + filepath.Join(m.home, "run", "docker.sock") }

// result is how a command ended.
type result struct {
	args     []string
	code     int
	out, err string
}

func (r result) String() string {
	return strings.Join(r.args, " ") + ": exit " + strconv.Itoa(r.code) + "\nstdout:\n" + r.out + "\nstderr:\n" + r.err
}

// dhow runs our command line.
func (m *machine) dhow(args ...string) result {
	m.t.Helper()
	return m.exec(nil, filepath.Join(m.bin, "dhow"), args...)
}

func (m *machine) exec(env []string, name string, args ...string) result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(append([]string(nil), m.env...), env...)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%s %v: %v", name, args, err)
	}
	if ctx.Err() != nil {
		m.t.Errorf("%s %v took longer than %v", name, args, commandTimeout)
	}
	return result{append([]string{filepath.Base(name)}, args...), c.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// ok runs our command line and fails the test unless it succeeds; it returns
// the output without the last newline.
func (m *machine) ok(args ...string) string {
	m.t.Helper()
	r := m.dhow(args...)
	if r.code != 0 {
		m.t.Fatal(r)
	}
	return strings.TrimSuffix(r.out, "\n")
}

func (m *machine) status() client.Status {
	m.t.Helper()
	var s client.Status
	if err := json.Unmarshal([]byte(m.ok("machine", "status", "--format", "json")), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// busybox is the program that the image's own test image is made of.
func (m *machine) busybox() string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(testkit.VM(m.t).Image, "busybox"))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}
