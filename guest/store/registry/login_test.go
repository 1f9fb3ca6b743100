//go:build linux

package registry_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"dhow/guest/store/registry"
	"dhow/internal/errdefs"
)

func TestLoginWithBasicAuth(t *testing.T) {
	f := newFake(t)
	f.mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			apiError(w, 401, "UNAUTHORIZED", "authentication required")
		}
	})
	c := client(t)
	for _, server := range []string{f.host(), f.URL, f.URL + "/v2/"} {
		token, err := c.Login(t.Context(), registry.Auth{Username: "me", Password: "secret", ServerAddress: server})
		if err != nil || token != "" {
			t.Errorf("%s: token %q, err = %v", server, token, err)
		}
	}
	want := "login attempt to " + f.URL + "/v2/ failed with status: 401 Unauthorized"
	for _, bad := range []registry.Auth{{Username: "me", Password: "wrong"}, {}, {Username: "me", Password: "wrong", RegistryToken: "x"}} {
		bad.ServerAddress = f.host()
		_, err := c.Login(t.Context(), bad)
		if !errdefs.Is(err, errdefs.Denied) || errdefs.Sentence(err) != want {
			t.Errorf("%+v: %s %v, want %q", bad, errdefs.ClassOf(err), err, want)
		}
	}
}

func TestLoginWithBearerAuth(t *testing.T) {
	f := newFake(t)
	var form url.Values
	answer := `{"token":"t1"}`
	refuse := func(w http.ResponseWriter) { apiError(w, 401, "UNAUTHORIZED", "incorrect username or password") }
	valid := f.bearer(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.Form
		u, p, _ := r.BasicAuth()
		if (u != "me" || p != "secret") && form.Get("refresh_token") != "kept" {
			refuse(w)
			return
		}
		fmt.Fprint(w, answer)
	})
	*valid = "t1"
	c := client(t)
	login := func(user, password, identity string) (string, error) {
		return c.Login(t.Context(), registry.Auth{Username: user, Password: password, IdentityToken: identity, ServerAddress: f.host()})
	}
	if token, err := login("me", "secret", ""); err != nil || token != "" {
		t.Errorf("token %q, err = %v", token, err)
	}
	if form.Get("account") != "me" || form.Get("offline_token") != "true" || form.Get("service") != "reg, istry" || form.Has("scope") {
		t.Errorf("asked for %v", form)
	}
	answer = `{"access_token":"t1","refresh_token":"identity"}`
	if token, err := login("me", "secret", ""); err != nil || token != "identity" {
		t.Errorf("token %q, err = %v, want the identity token", token, err)
	}
	answer = `{"access_token":"t1"}`
	if token, err := login("me", "", "kept"); err != nil || token != "kept" || form.Get("grant_type") != "refresh_token" {
		t.Errorf("token %q, err = %v, want the one that was given", token, err)
	}
	want := fmt.Sprintf("Get %q: unauthorized: incorrect username or password", f.URL+"/v2/")
	for _, how := range []func(http.ResponseWriter){
		refuse,
		func(w http.ResponseWriter) { // as Docker Hub says it
			w.WriteHeader(401)
			fmt.Fprint(w, `{"details":"incorrect username or password"}`)
		},
	} {
		refuse = how
		if _, err := login("me", "wrong", ""); !errdefs.Is(err, errdefs.Denied) || errdefs.Sentence(err) != want {
			t.Errorf("%s %v, want %q", errdefs.ClassOf(err), err, want)
		}
	}
	*valid = "other" // the token is not taken
	if _, err := login("me", "secret", ""); !errdefs.Is(err, errdefs.Denied) || !strings.Contains(err.Error(), "failed with status: 401 Unauthorized") {
		t.Errorf("err = %v", err)
	}
}

func TestLoginToARegistryThatIsDead(t *testing.T) {
	c := client(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connects and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(501) }))
	defer broken.Close()
	for what, l := range map[string]struct{ server, want string }{
		"silent": {silent.Addr().String(), "timeout"},
		"closed": {closed.Addr().String(), "connection refused"},
		"broken": {broken.URL, "501 Not Implemented"},
	} {
		begun := time.Now()
		_, err := c.Login(t.Context(), registry.Auth{Username: "me", Password: "secret", ServerAddress: l.server})
		if !errdefs.Is(err, errdefs.Unavailable) || !strings.Contains(errdefs.Sentence(err), l.want) {
			t.Errorf("%s: %s %v, want %q", what, errdefs.ClassOf(err), err, l.want)
		}
		if took := time.Since(begun); took > 4*time.Second {
			t.Errorf("%s: took %v", what, took)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Login(ctx, registry.Auth{ServerAddress: silent.Addr().String()}); err != context.DeadlineExceeded {
		t.Errorf("after the caller's time: %v", err)
	}
}

// Nothing is let through: what was dialed is all that counts.
func TestLoginGoesToTheRegistryThatIsNamed(t *testing.T) {
	var asked []string
	c := registry.New(registry.Options{Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
		asked = append(asked, addr)
		return nil, &net.OpError{Op: "dial", Err: net.UnknownNetworkError("none")}
	}})
	defer c.Close()
	for server, want := range map[string]string{
		"":                            "registry-1.docker.io:443",
		"https://index.docker.io/v1/": "registry-1.docker.io:443",
		"docker.io":                   "registry-1.docker.io:443",
		"http://example.invalid":      "example.invalid:443", // plain HTTP is for loopback addresses only
		"example.invalid:8443/v2/":    "example.invalid:8443",
	} {
		asked = nil
		if _, err := c.Login(t.Context(), registry.Auth{Username: "me", ServerAddress: server}); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("%q: err = %v", server, err)
		}
		if len(asked) != 1 || asked[0] != want {
			t.Errorf("%q: dialed %v, want %s once", server, asked, want)
		}
	}
	for _, server := range []string{"https://", "http://[::1", "/v1/"} {
		if _, err := c.Login(t.Context(), registry.Auth{ServerAddress: server}); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%q: err = %v", server, err)
		}
	}
}
