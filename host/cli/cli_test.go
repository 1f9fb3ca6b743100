package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/internal/version"
)

// TestMain runs the test binary as the dhow command where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("DHOW_TEST_AS_CLI") == "1" {
		os.Exit(Main(context.Background(), os.Args[1:], os.Stderr))
	}
	os.Exit(m.Run())
}

type result struct {
	code        int
	stdout, err string
}

// dhow runs the command in a process of its own, with a home of its own.
func dhow(t *testing.T, home string, env []string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(os.Environ(), "DHOW_TEST_AS_CLI=1", "DHOW_HOME="+home, "DOCKER_CONFIG="+filepath.Join(home, "docker"), "DHOWD=/nonexistent/dhowd")
	c.Env = append(c.Env, env...)
	c.Stdout, c.Stderr = &out, &errOut
	err := c.Run()
	if _, failed := err.(*exec.ExitError); err != nil && !failed {
		t.Fatal(err)
	}
	return result{c.ProcessState.ExitCode(), out.String(), errOut.String()}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dhow")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestExitCodesAndMessagesWithoutAnEngine(t *testing.T) {
	home := shortDir(t)
	for _, c := range []struct {
		args   string
		code   int
		stderr string // contained
	}{
		{"nope", 1, "dhow: unknown command: dhow nope\n\nRun 'dhow --help' for more information"},
		{"run --nope", 125, "unknown flag: --nope\n\nUsage:  dhow run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'dhow run --help' for more information"},
		{"--nope", 125, "unknown flag: --nope"},
		{"run", 1, "'dhow run' requires at least 1 argument"},
		{"swarm init", 1, "unknown command: dhow swarm"},
		{"plugin ls", 1, "unknown command: dhow plugin"},
		{"machine nope", 1, ""},
		{"machine config cpus=0x", 125, "cpus"},
		{"machine config nope", 125, "nope"},
		{"machine logs", 1, "there is no log yet"},
		{"machine rm -f", 1, `there is no machine "default"`},
		{"ps", 1, "dhow: cannot start /nonexistent/dhowd"},
		{"--help", 0, ""},
		{"run --help", 0, ""},
		{"machine status", 0, ""},
		{"context ls", 0, ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			r := dhow(t, home, nil, strings.Fields(c.args)...)
			if r.code != c.code || !strings.Contains(r.err, c.stderr) {
				t.Errorf("exit %d, want %d; stderr:\n%s\nwant:\n%s", r.code, c.code, r.err, c.stderr)
			}
		})
	}
}

func TestHelpNeedsNoEngineAndShowsOnlyWhatIsServed(t *testing.T) {
	r := dhow(t, shortDir(t), nil, "--help")
	for _, want := range []string{"Usage:  dhow [OPTIONS] COMMAND", "machine     Manage the machine", "Common Commands:", "dhow machine --help"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("help lacks %q:\n%s", want, r.stdout)
		}
	}
	for _, not := range []string{"swarm", "service", "checkpoint"} {
		if strings.Contains(r.stdout, "  "+not+" ") {
			t.Errorf("help shows %q", not)
		}
	}
}

func TestPluginsAreDispatchedToOurSocketWithTheirExitCode(t *testing.T) {
	home := shortDir(t)
	l := fakeDaemon(t, home, client.Status{State: client.Running})
	dir := filepath.Join(home, "docker", "cli-plugins")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	plugin := `#!/bin/sh
if [ "$1" = docker-cli-plugin-metadata ]; then
  echo '{"SchemaVersion":"0.1.0","Vendor":"test","Version":"1","ShortDescription":"Says where it is sent"}'; exit
fi
echo "$DOCKER_HOST $*"; exit 7
`
	if err := os.WriteFile(filepath.Join(dir, "docker-probe"), []byte(plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	r := dhow(t, home, []string{"DOCKER_HOST=tcp://elsewhere:1", "DOCKER_CONTEXT=elsewhere"}, "probe", "up", "-d")
	if want := "unix://" + l.DockerSocket() + " probe up -d\n"; r.code != 7 || r.stdout != want {
		t.Errorf("exit %d, stdout %q, want 7 and %q; stderr %s", r.code, r.stdout, want, r.err)
	}
	if r := dhow(t, home, nil, "--help"); !strings.Contains(r.stdout, "probe*") {
		t.Errorf("help does not list the plugin:\n%s", r.stdout)
	}
}

// fakeDaemon answers dhowd's API and the docker socket's /_ping and
// /containers/json.
func fakeDaemon(t *testing.T, home string, status client.Status) config.Layout {
	t.Helper()
	if status.Version == "" {
		status.Version = version.Version
	}
	l, err := config.NewLayout(home, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Make(); err != nil {
		t.Fatal(err)
	}
	serve := func(name string, h http.Handler) {
		ln, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: h}
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(ln) }()
		t.Cleanup(func() { s.Close(); <-done })
	}
	daemon := http.NewServeMux()
	daemon.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(status) })
	daemon.HandleFunc("POST /v1/start", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(client.Event{Step: "machine"})
		e := client.Event{Done: true}
		if status.State == client.Failed {
			e = client.Event{Error: status.Error, Class: "unavailable"}
		}
		_ = json.NewEncoder(w).Encode(e)
	})
	serve(l.DaemonSocket(), daemon)
	docker := http.NewServeMux()
	docker.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		w.Header().Set("Ostype", "linux")
		_, _ = io.WriteString(w, "OK")
	})
	docker.HandleFunc("/v1.51/containers/json", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[]") })
	serve(l.DockerSocket(), docker)
	return l
}

func TestDockerCommandStartsTheMachineAndMakesTheContext(t *testing.T) {
	home := shortDir(t)
	l := fakeDaemon(t, home, client.Status{State: client.Stopped})
	r := dhow(t, home, []string{"DOCKER_HOST=tcp://elsewhere:1", "DOCKER_TLS_VERIFY=1"}, "ps", "-q")
	if r.code != 0 || r.stdout != "" || r.err != "" {
		t.Fatalf("%+v", r)
	}
	r = dhow(t, home, nil, "context", "inspect", ContextName, "--format", "{{.Endpoints.docker.Host}}")
	if want := "unix://" + l.DockerSocket() + "\n"; r.stdout != want {
		t.Errorf("context: %+v, want %q", r, want)
	}
}

func TestFailedStartIsOneClearSentence(t *testing.T) {
	home := shortDir(t)
	fakeDaemon(t, home, client.Status{State: client.Failed, Error: "the VM image was not found"})
	r := dhow(t, home, nil, "ps")
	if r.code != 1 || r.err != "dhow: the VM image was not found\n" {
		t.Errorf("%+v", r)
	}
}

func TestAnotherVersionsMachineIsNamed(t *testing.T) {
	home := shortDir(t)
	fakeDaemon(t, home, client.Status{State: client.Running, Version: "0.0.1"})
	r := dhow(t, home, nil, "ps", "-q")
	if r.code != 0 || !strings.Contains(r.err, "started by dhow 0.0.1") || !strings.Contains(r.err, "dhow machine restart") {
		t.Errorf("%+v", r)
	}
}

func TestMachineConfigChangesAndShows(t *testing.T) {
	home := shortDir(t)
	if r := dhow(t, home, nil, "machine", "config", "memory=1g", "idle_minutes=5"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if r := dhow(t, home, nil, "machine", "config", "memory"); r.stdout != "1 GiB\n" {
		t.Errorf("%+v", r)
	}
	if r := dhow(t, home, nil, "machine", "config"); !strings.Contains(r.stdout, "idle_minutes") {
		t.Errorf("%+v", r)
	}
	var s client.Status
	if r := dhow(t, home, nil, "machine", "status", "--format", "json"); json.Unmarshal([]byte(r.stdout), &s) != nil || s.Memory != 1<<30 || s.State != client.Stopped {
		t.Errorf("%+v", r)
	}
}

func TestCopyTail(t *testing.T) {
	for _, c := range []struct {
		n    int
		want string
	}{{-1, "a\nb\nc"}, {0, ""}, {2, "b\nc"}, {9, "a\nb\nc"}} {
		var b strings.Builder
		if err := copyTail(&b, strings.NewReader("a\nb\nc"), c.n); err != nil || b.String() != c.want {
			t.Errorf("tail %d = %q, %v, want %q", c.n, b.String(), err, c.want)
		}
	}
}
