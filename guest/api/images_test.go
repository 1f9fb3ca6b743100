//go:build linux

package api_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dhow/guest/engine"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const helloID = "sha256:e6c1104d4a52"

func TestPullStreamsProgressInDockersOrder(t *testing.T) {
	r := newRig(t)
	resp, err := r.client().ImagePull(t.Context(), "alpine:3", client.ImagePullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	var lines []string
	bars := map[string][]int64{}
	for m, err := range resp.JSONMessages(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if m.Status == "Downloading" {
			bars[m.ID] = append(bars[m.ID], m.Progress.Current)
			if m.Progress.Total != 100 {
				t.Errorf("%+v", m.Progress)
			}
			continue
		}
		line := strings.TrimPrefix(m.ID+": "+m.Status, ": ")
		lines = append(lines, line)
	}
	if len(lines) != 7 || lines[0] != "3: Pulling from library/alpine" ||
		lines[5] != fmt.Sprintf("Digest: sha256:%x", sha256.Sum256([]byte("alpine:3"))) || lines[6] != "Status: Downloaded newer image for alpine:3" {
		t.Errorf("%q", lines)
	}
	layers := slices.Sorted(slices.Values(lines[1:5]))
	if want := []string{"aaaaaaaaaaaa: Pull complete", "aaaaaaaaaaaa: Pulling fs layer", "bbbbbbbbbbbb: Pull complete", "bbbbbbbbbbbb: Pulling fs layer"}; !slices.Equal(layers, want) {
		t.Errorf("%q", layers)
	}
	for id, b := range bars { // thinned out to the first and the last within 100 ms
		if b[0] != 0 || b[len(b)-1] != 100 || len(b) > 4 {
			t.Errorf("%s: %v", id, b)
		}
	}
	_, body := r.do("POST", "/images/create?fromImage=alpine&tag=3", "")
	if !strings.HasSuffix(body, "{\"status\":\"Status: Image is up to date for alpine:3\"}\r\n") ||
		!strings.HasPrefix(body, "{\"status\":\"Pulling from library/alpine\",\"id\":\"3\"}\r\n") ||
		!strings.Contains(body, "{\"status\":\"Pulling fs layer\",\"progressDetail\":{},\"id\":\"aaaaaaaaaaaa\"}\r\n") {
		t.Errorf("%q", body)
	}
}

func TestPullErrorsBeforeAndAfterTheFirstMessage(t *testing.T) {
	r := newRig(t)
	r.refused("POST", "/images/create?fromImage=missing&tag=latest", "", 404, "pull access denied for missing:latest, repository does not exist or may require 'docker login'")
	resp, body := r.do("POST", "/images/create?fromImage=broken&tag=1", "")
	last := body[strings.LastIndex(strings.TrimSuffix(body, "\r\n"), "\n")+1:]
	if resp.StatusCode != 200 || last != "{\"errorDetail\":{\"message\":\"the registry hung up\"},\"error\":\"the registry hung up\"}\r\n" {
		t.Errorf("%s, %q", resp.Status, last)
	}
	r.refused("POST", "/images/create?fromImage=scratch&tag=latest", "", 403, "'scratch' is a reserved name")
	r.refused("POST", "/images/create?fromImage=a&platform=linux//x", "", 400, `"" is an invalid component of "linux//x": platform specifier component must match "^[A-Za-z0-9_.-]+$"`)
}

func TestPullOptions(t *testing.T) {
	auth := base64.URLEncoding.EncodeToString([]byte(`{"username":"u","password":"p?>","serveraddress":"https://r"}`))
	both := base64.URLEncoding.EncodeToString([]byte(`{"auth":"` + base64.StdEncoding.EncodeToString([]byte("u:p:q")) + `"}`))
	r := newRig(t)
	for _, c := range []struct {
		query, auth string
		want        engine.PullOptions
	}{
		{"fromImage=a&tag=b", auth, engine.PullOptions{Ref: "a:b", Auth: registry.AuthConfig{Username: "u", Password: "p?>", ServerAddress: "https://r"}}},
		{"fromImage=a:old&tag=b", "!", engine.PullOptions{Ref: "a:b"}},
		{"fromImage=r:5000/a&tag=sha256:00", both, engine.PullOptions{Ref: "r:5000/a@sha256:00", Auth: registry.AuthConfig{Auth: "dTpwOnE=", Username: "u", Password: "p:q"}}},
		{"fromImage=a@sha256:00", "", engine.PullOptions{Ref: "a@sha256:00"}},
		{"fromImage=a:", "", engine.PullOptions{Ref: "a", All: true}},
		{"fromImage=r:5000/a", "", engine.PullOptions{Ref: "r:5000/a", All: true}},
		{"fromImage=a&tag=b&platform=linux/aarch64", "", engine.PullOptions{Ref: "a:b", Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"}}},
		{"fromImage=a&tag=b&platform=linux/arm/v6", "", engine.PullOptions{Ref: "a:b", Platform: &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}}},
		{"fromImage=a&tag=b&platform=amd64", "", engine.PullOptions{Ref: "a:b", Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}},
	} {
		var header []string
		if c.auth != "" {
			header = []string{"X-Registry-Auth: " + c.auth}
		}
		if resp, body := r.do("POST", "/images/create?"+c.query, "", header...); resp.StatusCode != 200 {
			t.Errorf("%s: %s: %s", c.query, resp.Status, body)
		}
		got := r.e.Last("ImagePull").(engine.PullOptions)
		got.Progress = nil
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.query, got, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	r := newRig(t)
	res, err := r.client().ImageLoad(t.Context(), strings.NewReader("tar/of:1"), client.ImageLoadWithQuiet(true))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res)
	if err != nil || string(b) != "{\"stream\":\"Loaded image: tar/of:1\\n\"}\r\n" {
		t.Errorf("%q, %v", b, err)
	}
	_ = res.Close()
	_, body := r.do("POST", "/images/load?quiet=0", "sha256:00", "Content-Type: application/x-tar")
	if want := "{\"status\":\"Loading layer\",\"progressDetail\":{\"current\":9,\"total\":9},\"id\":\"cccccccccccc\"}\r\n{\"stream\":\"Loaded image ID: sha256:00\\n\"}\r\n"; body != want {
		t.Errorf("%q", body)
	}
	r.refused("POST", "/images/load", "", 400, "unexpected EOF")
}

func TestVerbsOfImages(t *testing.T) {
	r := newRig(t)
	r.want("POST", "/images/hello-world/tag?repo=localhost:5000/a/b&tag=1", "", 201, "")
	if got := r.e.Last("ImageTag"); got != [2]string{"localhost:5000/a/b", "1"} {
		t.Errorf("%v", got)
	}
	r.refused("POST", "/images/hello-world/tag", "", 400, "invalid reference format")
	r.refused("POST", "/images/x/tag?repo=a", "", 404, "No such image: x:latest")
	h := r.get("/images/localhost:5000/a/b:1/history").([]any)
	if len(h) != 1 || h[0].(map[string]any)["CreatedBy"] != "COPY hello /" {
		t.Errorf("%v", h)
	}
	r.refused("GET", "/images/a/b/c/history", "", 404, "No such image: a/b/c:latest")
	r.refused("GET", "/images/a/b/c/json", "", 404, "No such image: a/b/c:latest")
	r.refused("DELETE", "/images/%20", "", 400, "image name cannot be blank")
	r.refused("DELETE", "/images/a/b", "", 404, "No such image: a/b:latest")
	list := r.get("/images/json").([]any)
	if len(list) != 1 || !strings.HasPrefix(list[0].(map[string]any)["Id"].(string), helloID) {
		t.Errorf("%v", list)
	}
	resp, body := r.do("DELETE", "/images/localhost:5000/a/b:1?force=1&noprune=1", "")
	if resp.StatusCode != 200 || r.e.Last("ImageRemove") != [2]bool{true, true} || !strings.Contains(body, `{"Untagged":"localhost:5000/a/b:1"}`) {
		t.Errorf("%s %s", resp.Status, body)
	}
	r.want("GET", "/images/json", "", 200, "[]")
	r.get("/v1.40/images/json?filter=busy*")
	if got := r.e.Last("ImageList"); !reflect.DeepEqual(got, engine.Filters{"reference": {"busy*": true}}) {
		t.Errorf("%v", got)
	}
}
