//go:build linux

package api_test

import (
	"testing"

	"github.com/moby/moby/client"
)

func TestVersionsOutOfRangeAreRefusedInDockersWords(t *testing.T) {
	r := newRig(t)
	r.refused("GET", "/v1.53/info", "", 400, "client version 1.53 is too new. Maximum supported API version is 1.52")
	r.refused("GET", "/v2.0/info", "", 400, "client version 2.0 is too new. Maximum supported API version is 1.52")
	r.refused("GET", "/v1.23/info", "", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version")
	r.refused("GET", "/v1/info", "", 400, "client version 1 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version")
	r.refused("GET", "/v1..2/info", "", 400, "invalid API version: 1..2")
	r.refused("GET", "/v99999999.1/info", "", 400, "invalid API version: 99999999.1")
	r.refused("GET", "/vx/info", "", 404, "page not found")
	r.refused("GET", "/v1.41", "", 404, "page not found")
	r.refused("POST", "/v1.24/containers/prune", "", 400, `"POST /containers/prune" requires API version 1.25, but the requested API version is 1.24`)
	r.get("/v1.24/info")
	r.get("/v1.52/info")
	r.get("/info")
}

func TestClientNegotiatesDown(t *testing.T) {
	r := newRig(t)
	c := r.client()
	p, err := c.Ping(t.Context(), client.PingOptions{NegotiateAPIVersion: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.APIVersion != "1.52" || p.OSType != "linux" || p.BuilderVersion != "1" || p.Experimental || c.ClientVersion() != "1.52" {
		t.Errorf("%+v, negotiated %s", p, c.ClientVersion())
	}
}

func TestEveryAnswerHasTheCommonHeaders(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/_ping", "/v1.99/info", "/nothing"} {
		resp, _ := r.do("GET", path, "")
		for k, want := range map[string]string{"Api-Version": "1.52", "Docker-Experimental": "false", "Ostype": "linux", "Server": "Docker/9.8.7 (linux)"} {
			if got := resp.Header.Get(k); got != want {
				t.Errorf("%s: %s is %q, want %q", path, k, got, want)
			}
		}
	}
}

func TestUnknownPathsAndMethodsAreNotFound(t *testing.T) {
	r := newRig(t)
	for _, p := range []string{"/", "/x", "/containers", "/containers/a/nothing", "/v1.41/images"} {
		r.refused("GET", p, "", 404, "page not found")
	}
	r.refused("PATCH", "/info", "", 404, "page not found")
	resp, _ := r.do("GET", "/info?a=%zz", "")
	if resp.StatusCode != 400 {
		t.Errorf("malformed query: %s", resp.Status)
	}
}
