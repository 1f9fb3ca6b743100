//go:build linux

package api_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

func TestRunAsDockersClientDoes(t *testing.T) {
	r := newRig(t)
	c := r.client()
	id := r.box("both", "both", "o", "e", "42")
	w := c.ContainerWait(t.Context(), id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	r.start(id)
	select {
	case res := <-w.Result:
		if res.StatusCode != 42 || res.Error != nil {
			t.Errorf("%+v", res)
		}
	case err := <-w.Error:
		t.Fatal(err)
	}
	list, err := c.ContainerList(t.Context(), client.ContainerListOptions{All: true})
	if err != nil || len(list.Items) != 1 || list.Items[0].State != "exited" || list.Items[0].Names[0] != "/both" {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := c.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{RemoveVolumes: true}); err != nil {
		t.Error(err)
	}
	if got := r.e.Last("ContainerRemove"); got != (engine.RemoveOptions{Volumes: true}) {
		t.Errorf("remove: %+v", got)
	}
	if _, err := c.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{}); !cerrdefs.IsNotFound(err) || err.Error() != "Error response from daemon: No such container: "+id {
		t.Errorf("inspect: %v", err)
	}
}

func TestWaitSendsItsHeaderBeforeTheResult(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	id := r.box("sleep", "sleep")
	r.start(id)
	conn := r.dial()
	if _, err := io.WriteString(conn, "POST /containers/sleep/wait HTTP/1.1\r\nHost: docker\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || line != "HTTP/1.1 200 OK\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_ = conn.Close() // the handler must end with it
	if err := r.e.ContainerKill(t.Context(), "sleep", ""); err != nil {
		t.Fatal(err)
	}
	r.want("POST", "/containers/sleep/wait", "", 200, `{"StatusCode":137}`)
	r.want("POST", "/v1.24/containers/sleep/wait?condition=bogus", "", 200, `{"StatusCode":137}`)
	r.refused("POST", "/containers/sleep/wait?condition=bogus", "", 400, `invalid condition: "bogus"`)
	r.refused("POST", "/containers/x/wait", "", 404, "No such container: x")
	r.stop()
}

func TestVerbsOfContainers(t *testing.T) {
	r := newRig(t)
	r.box("a", "sleep")
	r.want("POST", "/containers/a/start", "", 204, "")
	r.want("POST", "/containers/a/start", "", 304, "")
	r.refused("POST", "/containers/a/start", `{"Binds":["/a:/b"]}`, 400, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	r.refused("POST", "/containers/a/start?checkpoint=x", "", 501, "dhow does not serve checkpoints yet")
	r.want("POST", "/containers/a/pause", "", 204, "")
	r.refused("POST", "/containers/a/attach?stream=1&stdout=1", "", 409, "container a is paused, unpause the container before attach")
	r.want("POST", "/containers/a/unpause", "", 204, "")
	r.want("POST", "/containers/a/resize?h=40&w=120", "", 200, "")
	if got := r.e.Last("ContainerResize"); got != [2]uint{40, 120} {
		t.Errorf("resize: %v", got)
	}
	r.refused("POST", "/containers/a/resize?h=&w=1", "", 400, `invalid resize height "": invalid syntax`)
	r.refused("POST", "/containers/a/resize?h=1&w=-1", "", 400, `invalid resize width "-1": value out of range`)
	r.refused("POST", "/containers/a/resize?h=1&w=99999999999", "", 400, `invalid resize width "99999999999": value out of range`)
	r.want("POST", "/containers/a/restart?t=3&signal=SIGINT", "", 204, "")
	if got, want := r.e.Last("ContainerRestart"), (engine.StopOptions{Signal: "SIGINT", Timeout: ptr(3)}); !reflect.DeepEqual(got, want) {
		t.Errorf("restart: %+v", got)
	}
	r.refused("POST", "/containers/a/stop?t=soon", "", 400, `invalid value for "t": "soon" is not a number`)
	r.want("GET", "/containers/a/top?ps_args=-o+pid,cmd++-e", "", 200, `{"Titles":["PID","CMD"],"Processes":[["1","sleep"]]}`)
	if got := r.e.Last("ContainerTop"); !reflect.DeepEqual(got, []string{"-o", "pid,cmd", "-e"}) {
		t.Errorf("top: %q", got)
	}
	r.refused("DELETE", "/containers/a", "", 409, `cannot remove container "/a": container is running: stop the container before removing or force remove`)
	r.want("POST", "/v1.41/containers/a/stop?signal=SIGINT", "", 204, "")
	if got := r.e.Last("ContainerStop"); !reflect.DeepEqual(got, engine.StopOptions{}) {
		t.Errorf("stop by 1.41, which has no signal: %+v", got)
	}
	r.want("POST", "/containers/a/stop", "", 304, "")
	r.refused("POST", "/containers/a/kill?signal=KILL", "", 409, "cannot kill container: a: container a is not running")
	r.want("POST", "/containers/a/rename?name=b", "", 204, "")
	r.want("POST", "/containers/b/start", "", 204, "")
	r.want("POST", "/containers/b/kill?signal=KILL", "", 204, "")
	r.want("DELETE", "/containers/b?force=1&v=true&link=no", "", 204, "")
	if got := r.e.Last("ContainerRemove"); got != (engine.RemoveOptions{Force: true, Volumes: true}) {
		t.Errorf("remove: %+v", got)
	}
	id := r.box("c", "echo")
	r.want("POST", "/containers/prune", "", 200, `{"ContainersDeleted":["`+id+`"],"SpaceReclaimed":0}`)
	for _, verb := range []string{"start", "stop", "restart", "kill", "pause", "unpause", "rename"} {
		r.refused("POST", "/containers/nosuch/"+verb, "", 404, "No such container: nosuch")
	}
}

func ptr[T any](v T) *T { return &v }

func TestListOptions(t *testing.T) {
	r := newRig(t)
	r.want("GET", "/containers/json", "", 200, "[]")
	r.box("a", "sleep")
	for query, want := range map[string]engine.ListOptions{
		"":                 {},
		"?all=1&size=true": {All: true, Size: true},
		"?limit=2":         {All: true, Limit: 2},
		"?limit=-1&all=0":  {},
		"?filters=" + `{"status":{"exited":true}}`:   {Filters: engine.Filters{"status": {"exited": true}}},
		"?filters=" + `{"status":["exited","dead"]}`: {Filters: engine.Filters{"status": {"exited": true, "dead": true}}},
		"?before=x": {Filters: engine.Filters{"before": {"x": true}}},
	} {
		r.get("/containers/json" + strings.ReplaceAll(query, `"`, "%22"))
		if got := r.e.Last("ContainerList"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", query, got, want)
		}
	}
	r.refused("GET", "/containers/json?filters=[1]", "", 400, "invalid filter")
	r.refused("GET", "/containers/json?limit=x", "", 400, `invalid value for "limit": "x" is not a number`)
}

func TestErrorClassesAreStatuses(t *testing.T) {
	r := newRig(t)
	for class, status := range map[errdefs.Class]int{
		errdefs.Invalid: 400, errdefs.NotFound: 404, errdefs.Conflict: 409, errdefs.Denied: 403,
		errdefs.Unavailable: 503, errdefs.Unimplemented: 501, errdefs.Canceled: 499, errdefs.Internal: 500,
	} {
		r.e.Fail = func(string) error { return errdefs.Wrap(class, errors.New("secret cause"), "the sentence") }
		r.refused("GET", "/containers/json", "", status, "the sentence")
		r.refused("POST", "/containers/a/start", "", status, "the sentence")
	}
	r.e.Fail = func(string) error { return errors.New("bare") }
	r.refused("GET", "/containers/json", "", 500, "bare")
	r.stop()
	if !strings.Contains(r.log.String(), "secret cause") {
		t.Error("the log lacks an internal error's cause")
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	c := r.client()
	id := r.box("both", "both", "o", "e", "0")
	r.start(id)
	eventually(t, "it ended", func() bool {
		res, err := c.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{})
		return err == nil && res.Container.State.Status == "exited"
	})
	read := func(o client.ContainerLogsOptions) (string, string) {
		t.Helper()
		res, err := c.ContainerLogs(t.Context(), id, o)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Close()
		var out, errs bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &errs, res); err != nil {
			t.Fatal(err)
		}
		return out.String(), errs.String()
	}
	if out, errs := read(client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}); out != "o\n" || errs != "e\n" {
		t.Errorf("%q %q", out, errs)
	}
	if out, errs := read(client.ContainerLogsOptions{ShowStderr: true, Timestamps: true}); out != "" || errs != "2023-11-14T22:13:21.000000005Z e\n" {
		t.Errorf("%q %q", out, errs)
	}
	if out, errs := read(client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "1", Follow: true}); out+errs != "e\n" {
		t.Errorf("tail 1: %q %q", out, errs)
	}
	r.get2xx("/containers/both/logs?stdout=1&since=1700000000.5&until=1700000009&tail=all")
	got := r.e.Last("ContainerLogs").(engine.LogOptions)
	want := engine.LogOptions{Stdout: true, Since: time.Unix(1700000000, 5e8).UTC(), Until: time.Unix(1700000009, 0).UTC(), Tail: -1}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	r.refused("GET", "/containers/both/logs", "", 400, "Bad parameters: you must choose at least one stream")
	r.refused("GET", "/containers/x/logs?stdout=1", "", 404, "No such container: x")
	r.refused("GET", "/containers/both/logs?stdout=1&since=yesterday", "", 400, `invalid value for "since": invalid timestamp "yesterday"`)
	for path, contentType := range map[string]string{
		"/containers/both/logs?stdout=1":       "application/vnd.docker.multiplexed-stream",
		"/v1.41/containers/both/logs?stdout=1": "application/vnd.docker.raw-stream",
	} {
		if resp, _ := r.do("GET", path, ""); resp.Header.Get("Content-Type") != contentType {
			t.Errorf("%s: %s", path, resp.Header.Get("Content-Type"))
		}
	}
}

// get2xx sends a GET that must succeed, whatever it answers.
func (r *rig) get2xx(path string) {
	r.t.Helper()
	if resp, body := r.do("GET", path, ""); resp.StatusCode != 200 {
		r.t.Errorf("GET %s: %s: %s", path, resp.Status, body)
	}
}

func TestLogsFollowFlushesEachLine(t *testing.T) {
	r := newRig(t)
	r.boxOf("tty", &container.Config{Image: "hello-world", Cmd: []string{"cat"}, Tty: true, OpenStdin: true})
	r.start("tty")
	logs, err := r.client().ContainerLogs(t.Context(), "tty", client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	conn, _, _ := r.attach("/containers/tty/attach?stream=1&stdin=1", true)
	br := bufio.NewReader(logs)
	for _, line := range []string{"a\n", "b\n", "c\n"} {
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		if got, err := br.ReadString('\n'); err != nil || got != line { // raw: it has a terminal
			t.Fatalf("%q, %v", got, err)
		}
	}
}

func TestStats(t *testing.T) {
	r := newRig(t)
	id := r.box("a", "sleep")
	_, body := r.do("GET", "/containers/a/stats", "")
	if n := strings.Count(body, `"id":"`+id+`"`); n != 3 || strings.Count(body, "\n") != 3 {
		t.Errorf("%d samples in %q", n, body)
	}
	resp, body := r.do("GET", "/containers/a/stats?stream=0&one-shot=1", "")
	if strings.Count(body, "\n") != 1 || resp.Header.Get("Content-Type") != "application/json" || r.e.Last("ContainerStats") != [2]bool{false, true} {
		t.Errorf("%q %v", body, r.e.Last("ContainerStats"))
	}
	r.refused("GET", "/containers/x/stats", "", 404, "No such container: x")
}

func TestNotYet(t *testing.T) {
	r := newRig(t)
	for what, reqs := range map[string][]string{
		"cp":               {"HEAD /containers/a/archive?path=/", "GET /containers/a/archive?path=/", "PUT /containers/a/archive?path=/"},
		"diff":             {"GET /containers/a/changes"},
		"export":           {"GET /containers/a/export"},
		"container update": {"POST /containers/a/update"},
		"commit":           {"POST /commit?container=a"},
		"save":             {"GET /images/a/b/get", "GET /images/get?names=a"},
		"push":             {"POST /images/a/b/push"},
		"search":           {"GET /images/search?term=a"},
		"image prune":      {"POST /images/prune"},
		"import":           {"POST /images/create?fromSrc=-"},
		"build":            {"POST /build"},
		"build sessions":   {"POST /session"},
		"network create":   {"POST /networks/create"},
		"network connect":  {"POST /networks/a/connect"},
		"volume create":    {"POST /volumes/create"},
	} {
		for _, req := range reqs {
			method, path, _ := strings.Cut(req, " ")
			if method == "HEAD" {
				if resp, _ := r.do(method, path, ""); resp.StatusCode != 501 {
					t.Errorf("%s: %s", req, resp.Status)
				}
				continue
			}
			r.refused(method, path, "", 501, "dhow does not serve "+what+" yet")
		}
	}
}
