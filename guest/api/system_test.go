//go:build linux

package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow/guest/engine"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

func TestPing(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/_ping", "/v1.41/_ping"} {
		resp, body := r.do("GET", path, "")
		if body != "OK" || resp.Header.Get("Cache-Control") != "no-cache, no-store, must-revalidate" || resp.Header.Get("Pragma") != "no-cache" ||
			resp.Header.Get("Builder-Version") != "1" || resp.Header.Get("Swarm") != "inactive" || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s: %q %v", path, body, resp.Header)
		}
	}
	if resp, body := r.do("HEAD", "/_ping", ""); resp.StatusCode != 200 || body != "" || resp.ContentLength != 0 || resp.Header.Get("Api-Version") != "1.52" {
		t.Errorf("%s %q %v", resp.Status, body, resp.Header)
	}
}

func TestVersionsOfTheEngineAndOfTheAPI(t *testing.T) {
	r := newRig(t)
	r.want("GET", "/version", "", 200, `{"Version":"0.0.1","ApiVersion":"1.52","MinAPIVersion":"1.24","Os":"linux","Arch":"amd64","Platform":{"Name":""},
		"Components":[{"Name":"Engine","Version":"0.0.1","Details":{"ApiVersion":"1.52","MinAPIVersion":"1.24","Os":"linux"}}]}`)
}

func TestAuth(t *testing.T) {
	r := newRig(t)
	r.want("POST", "/auth", `{"username":"u","password":"right","serveraddress":"s"}`, 200, `{"Status":"Login Succeeded"}`)
	r.refused("POST", "/auth", `{"username":"u","password":"wrong"}`, 401, "unauthorized: incorrect username or password")
}

func TestEventsAreSentAtOnceAndNoneIsMissed(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	res := r.client().Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("type", "container")})
	id := r.box("a", "echo") // at once: the header was there, so it must be seen
	select {
	case m := <-res.Messages:
		if m.Actor.ID != id || m.Action != "create" || m.Type != "container" || m.TimeNano == 0 {
			t.Errorf("%+v", m)
		}
	case err := <-res.Err:
		t.Fatal(err)
	}
	cancel()
	<-res.Err
	if got := r.e.Last("Events").(engine.EventOptions).Filters; !reflect.DeepEqual(got, engine.Filters{"type": {"container": true}}) {
		t.Errorf("%v", got)
	}
	r.stop()
}

func TestEventsByVersionAndType(t *testing.T) {
	r := newRig(t)
	since := fmt.Sprint(time.Now().Unix())
	r.e.Emit(events.ContainerEventType, events.ActionDie, "c1", map[string]string{"image": "i"})
	r.e.Emit(events.ImageEventType, events.ActionCreate, "i1", nil)
	r.e.Emit(events.NetworkEventType, events.ActionConnect, "n1", nil)
	read := func(path, accept string) (contentType string, got []map[string]any) {
		t.Helper()
		resp, body := r.do("GET", path+"?since="+since+"&until="+fmt.Sprintf("%.3f", float64(time.Now().Add(50*time.Millisecond).UnixNano())/1e9), "", "Accept: "+accept)
		for line := range strings.Lines(body) {
			if strings.Contains(accept, "json-seq") {
				if line[0] != 0x1e {
					t.Errorf("%q has no separator", line)
				}
				line = line[1:]
			}
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			delete(m, "time")
			delete(m, "timeNano")
			got = append(got, m)
		}
		return resp.Header.Get("Content-Type"), got
	}
	actor := func(id string, attrs any) map[string]any { return map[string]any{"ID": id, "Attributes": attrs} }
	now := []map[string]any{
		{"Type": "container", "Action": "die", "Actor": actor("c1", map[string]any{"image": "i"}), "scope": "local"},
		{"Type": "image", "Action": "create", "Actor": actor("i1", nil), "scope": "local"},
		{"Type": "network", "Action": "connect", "Actor": actor("n1", nil), "scope": "local"},
	}
	old := []map[string]any{
		{"Type": "container", "Action": "die", "Actor": actor("c1", map[string]any{"image": "i"}), "scope": "local", "status": "die", "id": "c1", "from": "i"},
		{"Type": "network", "Action": "connect", "Actor": actor("n1", nil), "scope": "local"},
	}
	for _, c := range []struct {
		path, accept, contentType string
		want                      []map[string]any
	}{
		{"/events", "*/*", "application/json", now},
		{"/v1.52/events", "application/jsonl, application/x-ndjson;q=0.9", "application/x-ndjson", now},
		{"/v1.52/events", "application/json-seq", "application/json-seq", now},
		{"/v1.45/events", "", "application/json", old},
	} {
		if contentType, got := read(c.path, c.accept); contentType != c.contentType || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %s: %s\n got %v\nwant %v", c.path, c.accept, contentType, got, c.want)
		}
	}
	r.refused("GET", "/events?since=5&until=4", "", 400, "`since` time (5) cannot be after `until` time (4)")
	r.refused("GET", "/events?since=soon", "", 400, `invalid value for "since": invalid timestamp "soon"`)
}

func TestDiskUsage(t *testing.T) {
	r := newRig(t)
	r.box("a", "echo")
	keys := func(path string) []string {
		t.Helper()
		var l []string
		for k, v := range r.get(path).(map[string]any) {
			if m, ok := v.(map[string]any); ok && m["Items"] != nil {
				k += "+Items"
			}
			l = append(l, k)
		}
		slices.Sort(l)
		return l
	}
	for path, want := range map[string][]string{
		"/v1.41/system/df":            {"BuildCache", "Containers", "Images", "LayersSize", "Volumes"},
		"/v1.51/system/df?type=image": {"Images", "LayersSize"},
		"/system/df":                  {"BuildCache", "BuildCacheUsage", "ContainerUsage", "Containers", "ImageUsage", "Images", "LayersSize", "VolumeUsage", "Volumes"},
		"/system/df?verbose=1":        {"BuildCacheUsage", "ContainerUsage+Items", "ImageUsage+Items", "VolumeUsage"},
		"/system/df?verbose=0&type=container&type=volume": {"ContainerUsage", "VolumeUsage"},
	} {
		if got := keys(path); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	im := r.get("/v1.43/system/df").(map[string]any)["Images"].([]any)[0].(map[string]any)
	if im["VirtualSize"] != im["Size"] || im["Containers"] != float64(-1) {
		t.Errorf("%v", im)
	}
	r.refused("GET", "/system/df?type=x", "", 400, "unknown object type: x")
	r.refused("GET", "/system/df?verbose=x", "", 400, "invalid value for verbose: x")
	res, err := r.client().DiskUsage(t.Context(), client.DiskUsageOptions{Images: true, Verbose: true})
	if err != nil || len(res.Images.Items) != 1 || res.Images.TotalSize != 13336 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestNetworks(t *testing.T) {
	r := newRig(t)
	list := r.get("/networks").([]any)
	if len(list) != 3 {
		t.Fatalf("%v", list)
	}
	n := list[0].(map[string]any)
	if _, whole := n["Containers"]; whole || n["Name"] != "bridge" || !reflect.DeepEqual(n["Labels"], map[string]any{}) {
		t.Errorf("%v", n)
	}
	if old := r.get("/v1.27/networks").([]any)[0].(map[string]any); !reflect.DeepEqual(old["Containers"], map[string]any{}) {
		t.Errorf("%v", old)
	}
	id := n["Id"].(string)
	whole := r.get("/networks/" + id[:12]).(map[string]any)
	if _, ok := whole["Status"]; !ok || whole["Name"] != "bridge" || !reflect.DeepEqual(whole["Containers"], map[string]any{}) {
		t.Errorf("%v", whole)
	}
	if _, ok := r.get("/v1.51/networks/none").(map[string]any)["Status"]; ok {
		t.Error("a status by 1.51")
	}
	r.refused("GET", "/networks/x", "", 404, "network x not found")
	r.refused("DELETE", "/networks/x", "", 404, "network x not found")
	r.refused("DELETE", "/networks/host", "", 403, "host is a pre-defined network and cannot be removed")
	r.want("POST", "/networks/prune", "", 200, `{"NetworksDeleted":[]}`)
	r.refused("GET", "/networks?filters=1", "", 400, "invalid filter")
}

func TestWhatIsNotThereSaysSoAsDockerdDoes(t *testing.T) {
	r := newRig(t)
	r.want("GET", "/volumes", "", 200, `{"Volumes":[],"Warnings":null}`)
	r.refused("GET", "/volumes/v", "", 404, "get v: no such volume")
	r.refused("DELETE", "/volumes/v", "", 404, "get v: no such volume")
	r.want("POST", "/volumes/prune", "", 200, `{"VolumesDeleted":[],"SpaceReclaimed":0}`)
	r.want("POST", "/build/prune", "", 200, `{"CachesDeleted":[],"SpaceReclaimed":0}`)
	r.want("GET", "/plugins", "", 200, `[]`)
	r.refused("GET", "/plugins/a/b/json", "", 404, `plugin "a/b" not found`)
	const manager = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."
	for _, p := range []string{"/swarm", "/services", "/services/a", "/services/a/logs", "/nodes", "/tasks", "/tasks/a", "/secrets", "/configs", "/configs/a"} {
		r.refused("GET", p, "", 503, manager)
	}
	r.refused("POST", "/services/create", "", 503, manager)
	r.refused("POST", "/swarm/leave", "", 503, "This node is not part of a swarm")
	r.refused("POST", "/swarm/init", "", 501, "dhow runs one machine: it does not do swarm mode")
}
