package typecheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// maxErrors bounds the errors of one Check.
const maxErrors = 50

// listed is the part of `go list -json` that is used.
type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	CgoFiles   []string
	ImportMap  map[string]string
	Standard   bool
	Module     *struct {
		Main      bool
		GoVersion string
	}
	Error *struct{ Err string }
}

func (p listed) main() bool { return p.Module != nil && p.Module.Main }

// Check type-checks the packages that the patterns name, as `go list` in dir
// understands them, for goos and goarch with cgo. The error joins what is
// wrong in the main module, each as file:line:column: text.
func Check(dir, goos, goarch string, patterns ...string) error {
	packages, err := list(dir, goos, goarch, patterns)
	if err != nil {
		return err
	}
	c := checker{
		fset:    token.NewFileSet(),
		sizes:   types.SizesFor("gc", goarch),
		checked: map[string]*types.Package{"unsafe": types.Unsafe},
	}
	if c.sizes == nil {
		return fmt.Errorf("typecheck: unknown architecture %q", goarch)
	}
	for _, p := range packages { // each after those that it imports
		if p.Error != nil && p.main() {
			c.report(errors.New(strings.TrimSpace(p.Error.Err)))
		}
		c.check(p)
	}
	return errors.Join(c.errs...)
}

func list(dir, goos, goarch string, patterns []string) ([]listed, error) {
	args := append([]string{"list", "-e", "-deps", "-json=ImportPath,Dir,GoFiles,CgoFiles,ImportMap,Module,Standard,Error"}, patterns...)
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=1", "GOFLAGS=-buildvcs=false")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("typecheck: go list: %w: %s", err, stderr.String())
	}
	var packages []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("typecheck: go list: %w", err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		return nil, fmt.Errorf("typecheck: no packages match %q", patterns)
	}
	return packages, nil
}

type checker struct {
	fset    *token.FileSet
	sizes   types.Sizes
	checked map[string]*types.Package
	errs    []error
}

func (c *checker) report(err error) {
	if len(c.errs) < maxErrors {
		c.errs = append(c.errs, err)
	}
}

func (c *checker) check(p listed) {
	if p.ImportPath == "unsafe" || p.ImportPath == "C" {
		return
	}
	var files []*ast.File
	for _, name := range append(append([]string(nil), p.GoFiles...), p.CgoFiles...) {
		f, err := parser.ParseFile(c.fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil && p.main() {
			c.report(err)
		}
		if f != nil {
			files = append(files, f)
		}
	}
	conf := types.Config{
		FakeImportC:      true,
		IgnoreFuncBodies: !p.main(), // of others only what they declare counts
		Sizes:            c.sizes,
		Importer: importer(func(path string) (*types.Package, error) {
			if mapped, ok := p.ImportMap[path]; ok {
				path = mapped
			}
			if t := c.checked[path]; t != nil {
				return t, nil
			}
			return nil, fmt.Errorf("package %s is not there", path)
		}),
		Error: func(err error) {
			if p.main() {
				c.report(err)
			}
		},
	}
	if p.Module != nil && p.Module.GoVersion != "" {
		conf.GoVersion = "go" + p.Module.GoVersion
	}
	// Errors went to conf.Error; what could be checked is of use to importers.
	c.checked[p.ImportPath], _ = conf.Check(p.ImportPath, c.fset, files, nil)
}

type importer func(path string) (*types.Package, error)

func (f importer) Import(path string) (*types.Package, error) { return f(path) }
