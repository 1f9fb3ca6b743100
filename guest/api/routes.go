//go:build linux

package api

import (
	"net/http"
	"strings"
)

// route is one row of the table. A pattern is a path without its version; it
// may hold one variable: {name} is one segment, {name...} one or more (image
// names have slashes). Of rows that match, the first wins.
type route struct {
	method  string
	pattern string
	since   version // lowest API version that has it; 0: all
	serve   func(*server, *call) error
}

const (
	get  = http.MethodGet
	post = http.MethodPost
	put  = http.MethodPut
	head = http.MethodHead
	del  = http.MethodDelete
)

// table is the whole API.
var table = []route{
	// system.go, events.go
	{get, "/_ping", 0, (*server).ping},
	{head, "/_ping", 0, (*server).ping},
	{get, "/info", 0, (*server).info},
	{get, "/version", 0, (*server).systemVersion},
	{get, "/events", 0, (*server).events},
	{get, "/system/df", v1(25), (*server).diskUsage},
	{post, "/auth", 0, (*server).auth},

	// containers.go, create.go
	{get, "/containers/json", 0, (*server).containerList},
	{post, "/containers/create", 0, (*server).containerCreate},
	{post, "/containers/prune", v1(25), (*server).containerPrune},
	{get, "/containers/{name}/json", 0, (*server).containerInspect},
	{get, "/containers/{name}/top", 0, (*server).containerTop},
	{post, "/containers/{name}/start", 0, (*server).containerStart},
	{post, "/containers/{name}/stop", 0, (*server).containerStop},
	{post, "/containers/{name}/restart", 0, (*server).containerRestart},
	{post, "/containers/{name}/kill", 0, (*server).containerKill},
	{post, "/containers/{name}/pause", 0, (*server).containerPause},
	{post, "/containers/{name}/unpause", 0, (*server).containerUnpause},
	{post, "/containers/{name}/rename", 0, (*server).containerRename},
	{post, "/containers/{name}/resize", 0, (*server).containerResize},
	{post, "/containers/{name}/wait", 0, (*server).containerWait},
	{del, "/containers/{name}", 0, (*server).containerRemove},

	// attach.go, logs.go
	{post, "/containers/{name}/attach", 0, (*server).containerAttach},
	{get, "/containers/{name}/attach/ws", 0, (*server).containerAttachWebSocket},
	{get, "/containers/{name}/logs", 0, (*server).containerLogs},
	{get, "/containers/{name}/stats", 0, (*server).containerStats},

	{get, "/containers/{name}/changes", 0, notYet("diff")},
	{get, "/containers/{name}/export", 0, notYet("export")},
	{post, "/containers/{name}/update", 0, notYet("container update")},
	{head, "/containers/{name}/archive", 0, notYet("cp")},
	{get, "/containers/{name}/archive", 0, notYet("cp")},
	{put, "/containers/{name}/archive", 0, notYet("cp")},
	{get, "/containers/{name}/checkpoints", v1(25), notYet("checkpoints")},
	{post, "/containers/{name}/checkpoints", v1(25), notYet("checkpoints")},
	{post, "/commit", 0, notYet("commit")},

	// exec.go
	{post, "/containers/{name}/exec", 0, (*server).execCreate},
	{post, "/exec/{name}/start", 0, (*server).execStart},
	{post, "/exec/{name}/resize", 0, (*server).execResize},
	{get, "/exec/{name}/json", 0, (*server).execInspect},

	// images.go, pull.go
	{get, "/images/json", 0, (*server).imageList},
	{post, "/images/create", 0, (*server).imageCreate},
	{post, "/images/load", 0, (*server).imageLoad},
	{get, "/images/search", 0, notYet("search")},
	{get, "/images/get", 0, notYet("save")},
	{post, "/images/prune", v1(25), notYet("image prune")},
	{get, "/images/{name...}/json", 0, (*server).imageInspect},
	{get, "/images/{name...}/history", 0, (*server).imageHistory},
	{get, "/images/{name...}/get", 0, notYet("save")},
	{post, "/images/{name...}/push", 0, notYet("push")},
	{post, "/images/{name...}/tag", 0, (*server).imageTag},
	{del, "/images/{name...}", 0, (*server).imageRemove},
	{get, "/distribution/{name...}/json", v1(30), notYet("manifest inspection at a registry")},

	// networks.go
	{get, "/networks", 0, (*server).networkList},
	{get, "/networks/{name}", 0, (*server).networkInspect},
	{post, "/networks/create", 0, notYet("network create")},
	{post, "/networks/prune", v1(25), (*server).networkPrune},
	{post, "/networks/{name}/connect", 0, notYet("network connect")},
	{post, "/networks/{name}/disconnect", 0, notYet("network disconnect")},
	{del, "/networks/{name}", 0, (*server).networkRemove},

	// volumes.go
	{get, "/volumes", 0, (*server).volumeList},
	{get, "/volumes/{name}", 0, (*server).volumeInspect},
	{post, "/volumes/create", 0, notYet("volume create")},
	{post, "/volumes/prune", v1(25), (*server).volumePrune},
	{put, "/volumes/{name}", v1(42), notYet("volume update")},
	{del, "/volumes/{name}", 0, (*server).volumeInspect}, // there is none, whichever is asked for

	// builder
	{post, "/build", 0, notYet("build")},
	{post, "/build/prune", v1(31), (*server).buildPrune},
	{post, "/build/cancel", v1(31), notYet("build")},
	{post, "/session", v1(31), notYet("build sessions")},
	{post, "/grpc", v1(31), notYet("BuildKit's own API")},

	// absent.go: what an engine without plugins and swarm mode answers
	{get, "/plugins", v1(25), (*server).pluginList},
	{get, "/plugins/privileges", v1(25), notYet("plugins")},
	{post, "/plugins/{name...}", v1(25), notYet("plugins")},
	{get, "/plugins/{name...}/json", v1(25), (*server).pluginInspect},
	{del, "/plugins/{name...}", v1(25), (*server).pluginInspect},
	{post, "/swarm/init", 0, noSwarm},
	{post, "/swarm/join", 0, noSwarm},
	{post, "/swarm/leave", 0, notInSwarm},
	{post, "/swarm/update", 0, notManager},
	{post, "/swarm/unlock", 0, notInSwarm},
	{get, "/swarm", 0, notManager},
	{get, "/swarm/unlockkey", 0, notManager},
	{get, "/services", 0, notManager},
	{get, "/services/{name...}", 0, notManager},
	{post, "/services/{name...}", 0, notManager},
	{del, "/services/{name}", 0, notManager},
	{get, "/nodes", 0, notManager},
	{get, "/nodes/{name}", 0, notManager},
	{post, "/nodes/{name...}", 0, notManager},
	{del, "/nodes/{name}", 0, notManager},
	{get, "/tasks", 0, notManager},
	{get, "/tasks/{name...}", 0, notManager},
	{get, "/secrets", v1(25), notManager},
	{get, "/secrets/{name}", v1(25), notManager},
	{post, "/secrets/{name...}", v1(25), notManager},
	{del, "/secrets/{name}", v1(25), notManager},
	{get, "/configs", v1(30), notManager},
	{get, "/configs/{name}", v1(30), notManager},
	{post, "/configs/{name...}", v1(30), notManager},
	{del, "/configs/{name}", v1(30), notManager},
}

// router finds routes: rows by the path's first segment, each split around
// its variable.
type router struct {
	byNoun map[string][]row
}

type row struct {
	*route
	before, after string // of the pattern's variable
	variable      bool
	greedy        bool // the variable spans slashes
}

func newRouter(t []route) *router {
	rt := &router{byNoun: make(map[string][]row, 32)}
	for i := range t {
		r := row{route: &t[i], before: t[i].pattern}
		if before, rest, ok := strings.Cut(t[i].pattern, "{"); ok {
			variable, after, _ := strings.Cut(rest, "}")
			r.before, r.after, r.variable = before, after, true
			r.greedy = strings.HasSuffix(variable, "...")
		}
		n := noun(t[i].pattern)
		rt.byNoun[n] = append(rt.byNoun[n], r)
	}
	return rt
}

// noun is a path's first segment.
func noun(path string) string {
	n, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return n
}

// find returns the route for a method and a path without its version, and what
// its variable matched; nil where there is none.
func (rt *router) find(method, path string) (*route, string) {
	for _, r := range rt.byNoun[noun(path)] {
		if r.method != method {
			continue
		}
		if !r.variable {
			if path == r.before {
				return r.route, ""
			}
			continue
		}
		if len(path) <= len(r.before)+len(r.after) || !strings.HasPrefix(path, r.before) || !strings.HasSuffix(path, r.after) {
			continue
		}
		name := path[len(r.before) : len(path)-len(r.after)]
		if r.greedy || !strings.Contains(name, "/") {
			return r.route, name
		}
	}
	return nil, ""
}
