//go:build linux

package test

import (
	"errors"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/test/fixture"

	"github.com/rogpeppe/go-internal/testscript"
)

// testScripts runs every script with the given client. Each script leaves the
// engine as it found it.
func testScripts(m *machine, cli string) {
	reg := fixture.StartRegistry(m.t)
	digest := pushApp(m.t, reg, m.busybox())
	testscript.Run(m.t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			for _, kv := range m.env {
				if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "DHOW_") || k == "DOCKER_CONFIG" || k == "PATH" {
					e.Setenv(k, v)
				}
			}
			e.Setenv("DOCKER_HOST", m.socket())
			e.Setenv("CLI", cli)
			e.Setenv("HELLO", "dhow/hello")
			e.Setenv("REGISTRY", strings.Replace(reg.Addr, "127.0.0.1", "localhost", 1))
			e.Setenv("DIGEST1", digest)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exitcode": exitCode,
			"waitlog":  waitLog,
		},
	})
}

// exitCode runs a program and wants an exit code: exitcode N program [args...].
// Its standard error is what stderr looks at next.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N program [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// waitLog waits until a container's log matches: waitlog container regexp.
func waitLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: waitlog container regexp")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if ts.Exec(ts.Getenv("CLI"), "logs", args[0]) == nil && re.MatchString(ts.ReadFile("stdout")) {
			return
		}
	}
	ts.Fatalf("the log of %s never matched %s", args[0], args[1])
}

// pushApp pushes team/app:1 and :2, which share their base, and returns the
// digest of the first.
func pushApp(t *testing.T, reg *fixture.Registry, busybox string) string {
	t.Helper()
	base := []fixture.Entry{fixture.Dir("bin", 0o755), fixture.File("bin/busybox", 0o755, busybox), fixture.Dir("tmp", 0o1777)}
	for _, applet := range []string{"sh", "cat", "true", "echo", "ls"} {
		base = append(base, fixture.Symlink("bin/"+applet, "busybox"))
	}
	var first string
	for tag, content := range map[string]string{"1": "one\n", "2": "two\n"} {
		img, err := fixture.Image(runtime.GOARCH, []string{"sh"}, base, []fixture.Entry{fixture.File("version", 0o644, content)})
		if err != nil {
			t.Fatal(err)
		}
		if _, digest := reg.Push(t, "team/app:"+tag, img); tag == "1" {
			first = digest
		}
	}
	return first
}
