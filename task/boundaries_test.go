package task

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestBoundaries: each goroutine that the program starts has a boundary for panics. So have the
// functions that timers and contexts call, and those of singleflight: there, a panic ends the
// process.
func TestBoundaries(t *testing.T) {
	t.Parallel()
	found := 0
	for _, root := range []string{"cmd", "proxy", "storage", "upstream"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && strings.HasSuffix(path, "test"): // packages for tests, such as upstreamtest
				return fs.SkipDir
			case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				work, begins := begun(n)
				if !begins {
					return true
				}
				if found++; !bounded(work) {
					t.Errorf("%s: no boundary: use task.Guard, task.Keep or task.Try", fset.Position(n.Pos()))
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 30 {
		t.Errorf("only %d goroutines found", found)
	}
}

// begun returns the function that n starts in a goroutine.
func begun(n ast.Node) (work ast.Expr, ok bool) {
	switch n := n.(type) {
	case *ast.GoStmt:
		return n.Call.Fun, true
	case *ast.CallExpr:
		called, ok := n.Fun.(*ast.SelectorExpr)
		if !ok || len(n.Args) == 0 || !slices.Contains([]string{"Go", "AfterFunc", "DoChan", "Do"}, called.Sel.Name) {
			return nil, false
		}
		last := n.Args[len(n.Args)-1]
		if of, ok := called.X.(*ast.SelectorExpr); called.Sel.Name == "Do" && (!ok || of.Sel.Name != "flights") {
			return nil, false // sync.Once and http.Client
		}
		return last, true
	}
	return nil, false
}

// bounded reports whether work is made by this package, calls it in its body, or only
// cancels a context.
func bounded(work ast.Expr) bool {
	switch w := work.(type) {
	case *ast.CallExpr: // go task.Guard(...)(), Go(task.Guard(...))
		return ofTask(w)
	case *ast.FuncLit:
		if len(w.Body.List) == 1 {
			if s, ok := w.Body.List[0].(*ast.ExprStmt); ok {
				call, _ := s.X.(*ast.CallExpr)
				name, _ := call.Fun.(*ast.Ident)
				selected, _ := call.Fun.(*ast.SelectorExpr)
				if name != nil && name.Name == "cancel" || selected != nil && selected.Sel.Name == "cancel" {
					return true
				}
			}
		}
		tried := false
		ast.Inspect(w.Body, func(n ast.Node) bool {
			if inner, ok := n.(*ast.FuncLit); ok && inner != w {
				return false
			}
			if call, ok := n.(*ast.CallExpr); ok && ofTask(call) {
				tried = true
			}
			return true
		})
		return tried
	}
	return false
}

func ofTask(call *ast.CallExpr) bool {
	called, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	name, ok := called.X.(*ast.Ident)
	return ok && name.Name == "task"
}
