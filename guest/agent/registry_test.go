//go:build linux

package agent_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/authconfig"
	apireg "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"dhow/guest/store/storetest"
)

// private makes r let in only who proves to be me/secret: by basic
// authentication, or with a token of a token server.
func private(t *testing.T, r *storetest.Registry, bearer bool) {
	t.Helper()
	known := func(req *http.Request) bool {
		u, p, _ := req.BasicAuth()
		return u == "me" && p == "secret"
	}
	refuse := func(w http.ResponseWriter, text string) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":%q}]}`, text)
	}
	challenge := `Basic realm="private"`
	if bearer {
		tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			_ = req.ParseForm()
			if !known(req) && req.Form.Get("refresh_token") != "identity" {
				refuse(w, "incorrect username or password")
				return
			}
			refresh := ""
			if req.Form.Get("offline_token") == "true" {
				refresh = "identity"
			}
			fmt.Fprintf(w, `{"token":"a token","refresh_token":%q}`, refresh)
		}))
		t.Cleanup(tokens.Close)
		challenge = fmt.Sprintf(`Bearer realm="%s/token",service="private"`, tokens.URL)
	}
	r.Wrap = func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if bearer && req.Header.Get("Authorization") != "Bearer a token" || !bearer && !known(req) {
			w.Header().Set("WWW-Authenticate", challenge)
			refuse(w, "authentication required")
			return
		}
		next.ServeHTTP(w, req)
	}
}

// pull is `docker pull`; it returns the progress as it came.
func (m *machine) pull(name string, o client.ImagePullOptions) (string, error) {
	m.t.Helper()
	r, err := m.ImagePull(m.t.Context(), name, o)
	if err != nil {
		return "", err
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(out), nil
}

func TestKernelPrivateRegistry(t *testing.T) {
	m := newMachine(t)
	for kind, bearer := range map[string]bool{"basic": false, "bearer": true} {
		t.Run(kind, func(t *testing.T) {
			r := storetest.NewRegistry(t)
			layer := storetest.Gzip(storetest.Tar(storetest.File{Name: "kind", Data: kind}))
			name := r.Push(t, "private:v1", storetest.Image(t, runtime.GOARCH, layer))
			private(t, r, bearer)

			in, err := m.RegistryLogin(t.Context(), client.RegistryLoginOptions{Username: "me", Password: "secret", ServerAddress: r.Host()})
			want := map[bool]string{true: "identity"}[bearer]
			if err != nil || in.Auth.Status != "Login Succeeded" || in.Auth.IdentityToken != want {
				t.Errorf("login: %+v, %v", in.Auth, err)
			}
			_, err = m.RegistryLogin(t.Context(), client.RegistryLoginOptions{Username: "me", Password: "wrong", ServerAddress: r.Host()})
			want = map[bool]string{
				false: "login attempt to " + r.URL + "/v2/ failed with status: 401 Unauthorized",
				true:  "unauthorized: incorrect username or password",
			}[bearer]
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("login with a wrong password: %v, want %q", err, want)
			}

			for what, a := range map[string]struct {
				auth apireg.AuthConfig
				want string // of the error; "" = it works
			}{
				"password":       {apireg.AuthConfig{Username: "me", Password: "secret", ServerAddress: r.Host()}, ""},
				"wrong password": {apireg.AuthConfig{Username: "me", Password: "wrong", ServerAddress: r.Host()}, "unauthorized: "},
				"nobody":         {apireg.AuthConfig{}, map[bool]string{false: "no basic auth credentials", true: "unauthorized: incorrect username or password"}[bearer]},
			} {
				header, err := authconfig.Encode(a.auth)
				if err != nil {
					t.Fatal(err)
				}
				out, err := m.pull(name, client.ImagePullOptions{RegistryAuth: header})
				switch {
				case a.want == "" && (err != nil || !strings.Contains(out, "Status: ")):
					t.Errorf("%s: %v, %s", what, err, out)
				case a.want != "" && (err == nil || !strings.Contains(err.Error(), a.want)):
					t.Errorf("%s: %v, want %q", what, err, a.want)
				}
			}
			if bearer {
				header, _ := authconfig.Encode(apireg.AuthConfig{IdentityToken: "identity", ServerAddress: r.Host()})
				if _, err := m.pull(name, client.ImagePullOptions{RegistryAuth: header}); err != nil {
					t.Errorf("with the identity token: %v", err)
				}
			}
		})
	}
}
