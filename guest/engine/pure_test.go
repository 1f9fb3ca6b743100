//go:build linux

package engine

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"dhow/internal/errdefs"
)

func TestTheStateTableIsClosed(t *testing.T) {
	changes := []change{evStart, evExit, evPause, evUnpause, evRestart, evRemove, evFail}
	for from, row := range transitions {
		if err := container.ValidateContainerState(from); err != nil {
			t.Error(err)
		}
		for _, ev := range changes {
			s := State{Status: from}
			err := s.transition(ev)
			to, ok := row[ev]
			switch {
			case ok && (err != nil || s.Status != to):
				t.Errorf("%s + %s = %s, %v; want %s", from, ev, s.Status, err, to)
			case !ok && (err == nil || s.Status != from):
				t.Errorf("%s + %s = %s, %v; want an error and no change", from, ev, s.Status, err)
			}
			if ok && transitions[to] == nil {
				t.Errorf("%s + %s leads to %s, which has no row", from, ev, to)
			}
		}
		for ev := range row {
			if !slices.Contains(changes, ev) {
				t.Errorf("unknown change %q", ev)
			}
		}
	}
}

func TestStatusTexts(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	start, end := now.Add(-5*time.Minute), now.Add(-3*time.Minute)
	for want, s := range map[string]State{
		"Created":                      {Status: container.StateCreated},
		"Up 5 minutes":                 {Status: container.StateRunning, StartedAt: start},
		"Up 5 minutes (Paused)":        {Status: container.StatePaused, StartedAt: start},
		"Exited (0) 3 minutes ago":     {Status: container.StateExited, StartedAt: start, FinishedAt: end},
		"Exited (137) 3 minutes ago":   {Status: container.StateExited, StartedAt: start, FinishedAt: end, ExitCode: 137},
		"Restarting (1) 3 minutes ago": {Status: container.StateRestarting, FinishedAt: end, ExitCode: 1},
		"Removal In Progress":          {Status: container.StateRemoving},
		"Dead":                         {Status: container.StateDead},
	} {
		if got := s.text(now); got != want {
			t.Errorf("%s: %q, want %q", s.Status, got, want)
		}
	}
}

func TestGeneratedNames(t *testing.T) {
	form := regexp.MustCompile(`^[a-z]+_[a-z]+$`)
	seen := map[string]bool{}
	for range 50 {
		n := generateName("", func(string) bool { return false })
		if !form.MatchString(n) {
			t.Errorf("%q", n)
		}
		seen[n] = true
	}
	if len(seen) < 40 {
		t.Errorf("only %d different names of 50", len(seen))
	}
	tries := 0
	if n := generateName("0123456789abcdef", func(n string) bool { tries++; return tries <= 6 }); !regexp.MustCompile(`^[a-z]+_[a-z]+\d$`).MatchString(n) {
		t.Errorf("after six names in use: %q", n)
	}
	if n := generateName("0123456789abcdef", func(string) bool { return true }); n != "0123456789ab" {
		t.Errorf("when all is in use: %q", n)
	}
}

func TestNamesAndIDs(t *testing.T) {
	for _, n := range []string{"web", "/web", "a.b-c_1"} {
		if got, err := checkName(n); err != nil || got != strings.TrimPrefix(n, "/") {
			t.Errorf("%q: %q, %v", n, got, err)
		}
	}
	for _, n := range []string{"a", "-a", "a b", "a/b", "//a", "ä1"} {
		if _, err := checkName(n); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%q: %v", n, err)
		}
	}
	for range 100 {
		if id := newID(); len(id) != 64 || !strings.ContainsAny(id[:12], "abcdef") {
			t.Errorf("ID %q", id)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	for s, want := range map[string][]byte{
		"": {16, 17}, "ctrl-p,ctrl-q": {16, 17}, "a,b": {'a', 'b'}, "ctrl-@,ctrl-[,ctrl-_": {0, 27, 31}, "ctrl-\\": {28},
	} {
		if got, err := parseKeys(s); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"ctrl-", "ctrl-1", "abc", "a,,b"} {
		if _, err := parseKeys(s); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestEscapeReader(t *testing.T) {
	for _, c := range []struct {
		in, want string
		detached bool
	}{
		{"plain", "plain", false},
		{"ab\x10\x11cd", "ab", true},
		{"ab\x10cd", "ab\x10cd", false},
		{"ab\x10\x10\x11cd", "ab\x10", true},
		{"end\x10", "end\x10", false},
		{"\x11\x10\x11", "\x11", true},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytewise": iotest.OneByteReader} {
			e := &escapeReader{r: wrap(strings.NewReader(c.in)), keys: defaultDetachKeys}
			got, err := io.ReadAll(e)
			if string(got) != c.want || errors.Is(err, errDetached) != c.detached || !c.detached && err != nil {
				t.Errorf("%s %q: %q, %v", name, c.in, got, err)
			}
		}
	}
}

func TestFilters(t *testing.T) {
	f := Filters{"name": {"^web": true}, "label": {"a": true, "b=2": true}, "id": {"12": true}}
	if !f.match("name", "web1", "/web1") || f.match("name", "myweb") || !f.match("other", "x") {
		t.Error("match")
	}
	if !f.labels("label", map[string]string{"a": "x", "b": "2"}) || f.labels("label", map[string]string{"a": "x", "b": "3"}) || f.labels("label", nil) {
		t.Error("labels")
	}
	if !f.prefix("id", "1234") || f.prefix("id", "0123") {
		t.Error("prefix")
	}
	if err := f.check("name", "label", "id"); err != nil {
		t.Error(err)
	}
	if err := f.check("name", "label"); err == nil || err.Error() != "invalid filter 'id'" || !errdefs.Is(err, errdefs.Invalid) {
		t.Error(err)
	}
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Time{
		"10m": now.Add(-10 * time.Minute), "1893456000": time.Unix(1893456000, 0), "2029-12-31T00:00:00Z": time.Date(2029, 12, 31, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := (Filters{"until": {v: true}}).until(now); err != nil || !got.Equal(want) {
			t.Errorf("until=%s: %v, %v", v, got, err)
		}
	}
	if _, err := (Filters{"until": {"x": true}}).until(now); !errdefs.Is(err, errdefs.Invalid) {
		t.Error(err)
	}
	if b, err := (Filters{"dangling": {"1": true}}).boolean("dangling", false); !b || err != nil {
		t.Error(b, err)
	}
	if _, err := (Filters{"dangling": {"maybe": true}}).boolean("dangling", false); err == nil {
		t.Error("maybe is no boolean")
	}
}

func TestSignals(t *testing.T) {
	for s, want := range map[string]unix.Signal{
		"TERM": unix.SIGTERM, "SIGTERM": unix.SIGTERM, "term": unix.SIGTERM, "15": unix.SIGTERM, "9": unix.SIGKILL,
		"SIGUSR1": unix.SIGUSR1, "RTMIN": 34, "RTMIN+3": 37, "SIGRTMAX-1": 63,
	} {
		if got, err := parseSignal(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "65", "-1", "FOO", "SIGSIGTERM", "RTMIN+16"} {
		if got, err := parseSignal(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func dockerImage(c ocispec.ImageConfig) *dockerspec.DockerOCIImageConfig {
	return &dockerspec.DockerOCIImageConfig{ImageConfig: c}
}

func TestCommandAndEntrypointOfUserAndImage(t *testing.T) {
	img := func() *dockerspec.DockerOCIImageConfig {
		return dockerImage(ocispec.ImageConfig{Entrypoint: []string{"ie"}, Cmd: []string{"ic"}})
	}
	for _, c := range []struct {
		name, want string
		user       container.Config
	}{
		{"nothing", "ie ic", container.Config{}},
		{"a command", "ie uc", container.Config{Cmd: []string{"uc"}}},
		{"an entrypoint", "ue", container.Config{Entrypoint: []string{"ue"}}},
		{"both", "ue uc", container.Config{Entrypoint: []string{"ue"}, Cmd: []string{"uc"}}},
		{"no entrypoint, a command", "uc", container.Config{Entrypoint: []string{""}, Cmd: []string{"uc"}}},
	} {
		if err := mergeConfig(&c.user, img()); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		path, args := command(&c.user)
		if got := strings.Join(append([]string{path}, args...), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if err := mergeConfig(&container.Config{Entrypoint: []string{""}}, img()); err == nil || errdefs.Sentence(err) != "no command specified" {
		t.Errorf("neither: %v", err)
	}
	if err := mergeConfig(&container.Config{}, dockerImage(ocispec.ImageConfig{})); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("an image without command: %v", err)
	}
}

func TestMergeOfTheRest(t *testing.T) {
	img := dockerImage(ocispec.ImageConfig{
		User: "iu", Env: []string{"PATH=/bin", "A=image"}, Cmd: []string{"c"}, WorkingDir: "/w", StopSignal: "SIGINT",
		Labels: map[string]string{"a": "image", "b": "image"}, Volumes: map[string]struct{}{"/v": {}},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
	})
	img.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "x"}, Interval: time.Second, Retries: 3}
	c := container.Config{
		Env: []string{"A=user", "B"}, Labels: map[string]string{"a": "user"},
		ExposedPorts: network.PortSet{network.MustParsePort("53/udp"): {}}, Healthcheck: &dockerspec.HealthcheckConfig{Retries: 5},
	}
	if err := mergeConfig(&c, img); err != nil {
		t.Fatal(err)
	}
	if c.User != "iu" || c.WorkingDir != "/w" || c.StopSignal != "SIGINT" || len(c.Volumes) != 1 || len(c.ExposedPorts) != 2 {
		t.Errorf("%+v", c)
	}
	if !slices.Equal(c.Env, []string{"A=user", "B", "PATH=/bin"}) {
		t.Errorf("env %q", c.Env)
	}
	if c.Labels["a"] != "user" || c.Labels["b"] != "image" {
		t.Errorf("labels %v", c.Labels)
	}
	if h := c.Healthcheck; h.Retries != 5 || h.Interval != time.Second || len(h.Test) != 2 {
		t.Errorf("healthcheck %+v", h)
	}
}

func TestWhatIsNotServedIsRefused(t *testing.T) {
	for what, h := range map[string]container.HostConfig{
		"published":    {PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "80"}}}},
		"folders":      {Binds: []string{"/a:/b"}},
		"named":        {Binds: []string{"vol:/b"}},
		"--link":       {Links: []string{"a:b"}},
		"volumes-from": {VolumesFrom: []string{"x"}},
	} {
		err := checkHost(&h, 2)
		if !errdefs.Is(err, errdefs.Unimplemented) || !strings.Contains(errdefs.Sentence(err), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestHostConfigChecksAndDefaults(t *testing.T) {
	for sentence, h := range map[string]container.HostConfig{
		"can't create 'AutoRemove' container with restart policy":                {AutoRemove: true, RestartPolicy: container.RestartPolicy{Name: "always"}},
		"Minimum memory limit allowed is 6MB":                                    {Resources: container.Resources{Memory: 1 << 20}},
		"range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available": {Resources: container.Resources{NanoCPUs: 3e9}},
		"logger: no log driver named 'syslog' is registered":                     {LogConfig: container.LogConfig{Type: "syslog"}},
		"unknown log opt 'x' for json-file log driver":                           {LogConfig: container.LogConfig{Config: map[string]string{"x": "1"}}},
		"SHM size can not be less than 0":                                        {ShmSize: -1},
		"unknown or invalid runtime name: kata":                                  {Runtime: "kata"},
	} {
		if err := checkHost(&h, 2); err == nil || errdefs.Sentence(err) != sentence || !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%v; want %s", err, sentence)
		}
	}
	h := container.HostConfig{Resources: container.Resources{Memory: 64 << 20}}
	if err := checkHost(&h, 2); err != nil {
		t.Fatal(err)
	}
	if h.NetworkMode != "bridge" || h.ShmSize != 64<<20 || h.IpcMode != "private" || h.CgroupnsMode != "private" ||
		h.MemorySwap != 128<<20 || h.RestartPolicy.Name != "no" || h.LogConfig.Type != "json-file" || h.LogConfig.Config == nil {
		t.Errorf("%+v", h)
	}
}

func TestRestartPolicies(t *testing.T) {
	r := func(name container.RestartPolicyMode, max, count int) *Record {
		return &Record{HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: name, MaximumRetryCount: max}}, RestartCount: count}
	}
	for _, c := range []struct {
		r       *Record
		code    int
		stopped bool
		want    bool
	}{
		{r("no", 0, 0), 1, false, false},
		{r("always", 0, 9), 0, false, true},
		{r("always", 0, 0), 0, true, false},
		{r("unless-stopped", 0, 0), 1, false, true},
		{r("on-failure", 0, 99), 1, false, true},
		{r("on-failure", 0, 0), 0, false, false},
		{r("on-failure", 3, 2), 1, false, true},
		{r("on-failure", 3, 3), 1, false, false},
	} {
		if got := comesBack(c.r, c.code, c.stopped); got != c.want {
			t.Errorf("%+v after %d (stopped %v): %v", c.r.HostConfig.RestartPolicy, c.code, c.stopped, got)
		}
	}
	var delays []time.Duration
	d := time.Duration(0)
	for range 12 {
		d = backoff(d, 0)
		delays = append(delays, d)
	}
	if delays[0] != 100*time.Millisecond || delays[3] != 800*time.Millisecond || delays[11] != time.Minute {
		t.Errorf("%v", delays)
	}
	if got := backoff(time.Minute, 11*time.Second); got != 100*time.Millisecond {
		t.Errorf("after a healthy life: %v", got)
	}
}

func TestResolvConf(t *testing.T) {
	text := "# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nsearch a b\noptions ndots:2\n"
	servers, search, options := parseResolv(text, true)
	if !slices.Equal(servers, []string{"10.0.0.1"}) || !slices.Equal(search, []string{"a", "b"}) || !slices.Equal(options, []string{"ndots:2"}) {
		t.Error(servers, search, options)
	}
	if servers, _, _ := parseResolv(text, false); len(servers) != 2 {
		t.Error(servers)
	}
}

func TestCommandLine(t *testing.T) {
	if got := commandLine("sh", []string{"-c", "echo hi", "x"}); got != "sh -c 'echo hi' x" {
		t.Error(got)
	}
}

func TestVersionOf(t *testing.T) {
	v := VersionOf(Options{Version: "1.2.3", Commit: "abc", APIVersion: "1.52", MinAPIVersion: "1.24"})
	d := v.Components[0].Details
	if v.Version != "1.2.3" || v.GitCommit != "abc" || v.APIVersion != "1.52" || v.KernelVersion == "" || v.BuildTime != "" ||
		d["GitCommit"] != "abc" || d["Experimental"] != "false" || d["MinAPIVersion"] != "1.24" {
		t.Errorf("%+v", v)
	}
	if _, ok := d["BuildTime"]; ok {
		t.Error("there is a build time")
	}
}
