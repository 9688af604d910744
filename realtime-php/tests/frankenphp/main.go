// The FrankenPHP of the tests: FrankenPHP's core (the SAPI, its threads and workers) in Caddy, by a Caddy module of ours
// that knows as much of a Caddyfile as the tests and php-examples/frankenphp use. FrankenPHP's own Caddy module is a Go
// module by itself, which not every module proxy has.
//
// What matters here is done as there: a configuration that is loaded ends PHP's engine and starts it again, the workers
// restart on POST /frankenphp/workers/restart of Caddy's admin API, and a stop lets the workers finish.
package main

import (
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/dunglas/frankenphp"
)

func main() {
	caddy.RegisterModule(PHP{})
	caddy.RegisterModule(Site{})
	caddy.RegisterModule(Admin{})
	httpcaddyfile.RegisterGlobalOption("frankenphp", parsePHP)
	httpcaddyfile.RegisterHandlerDirective("php_server", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return &Site{}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("php_server", httpcaddyfile.Before, "file_server")
	caddycmd.Main()
}

// PHP is the engine with its settings: the global option `frankenphp`.
type PHP struct {
	Threads int               `json:"num_threads,omitempty"`
	Ini     map[string]string `json:"php_ini,omitempty"`
	Workers []Worker          `json:"workers,omitempty"`
}

// Worker is a script that answers one request after the other, on so many threads.
type Worker struct {
	File string `json:"file"`
	Num  int    `json:"num"`
}

func (PHP) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "frankenphp", New: func() caddy.Module { return new(PHP) }}
}

// Start of a configuration; when another one was in force, its engine ends here.
func (php *PHP) Start() error {
	options := []frankenphp.Option{
		frankenphp.WithNumThreads(php.Threads),
		frankenphp.WithPhpIni(php.Ini),
	}
	for _, worker := range php.Workers {
		options = append(options, frankenphp.WithWorkers("", worker.File, worker.Num))
	}
	frankenphp.Shutdown()
	return frankenphp.Init(options...)
}

func (*PHP) Stop() error {
	if caddy.Exiting() {
		frankenphp.DrainWorkers()
	}
	return nil
}

func parsePHP(d *caddyfile.Dispenser, _ any) (any, error) {
	php := PHP{Ini: map[string]string{}}
	d.Next()
	for d.NextBlock(0) {
		option := d.Val()
		values := d.RemainingArgs()
		switch {
		case option == "php_ini" && len(values) == 2:
			php.Ini[values[0]] = values[1]
		case option == "num_threads" && len(values) == 1:
			threads, err := strconv.Atoi(values[0])
			if err != nil {
				return nil, d.WrapErr(err)
			}
			php.Threads = threads
		case option == "worker" && len(values) == 2:
			num, err := strconv.Atoi(values[1])
			if err != nil {
				return nil, d.WrapErr(err)
			}
			php.Workers = append(php.Workers, Worker{File: values[0], Num: num})
		default:
			return nil, d.Errf("the tests' frankenphp does not know %s %v", option, values)
		}
	}
	return httpcaddyfile.App{Name: "frankenphp", Value: caddyconfig.JSON(php, nil)}, nil
}

// Site is the directive `php_server`: scripts and files below the root, index.php for every other path.
type Site struct{}

func (Site) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.php", New: func() caddy.Module { return new(Site) }}
}

func (Site) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	replacer := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	root := replacer.ReplaceAll("{http.vars.root}", ".")
	file := caddyhttp.SanitizedPathJoin(root, r.URL.Path)
	info, err := os.Stat(file)
	exists := err == nil && info.Mode().IsRegular()
	if exists && !strings.HasSuffix(file, ".php") {
		http.ServeFile(w, r, file)
		return nil
	}
	original := r.Clone(r.Context())
	if !exists {
		r.URL.Path = "/index.php"
	}
	request, err := frankenphp.NewRequestWithContext(
		r,
		frankenphp.WithRequestDocumentRoot(root, true),
		frankenphp.WithRequestSplitPath([]string{".php"}),
		frankenphp.WithOriginalRequest(original),
	)
	if err != nil {
		return err
	}
	return frankenphp.ServeHTTP(w, request)
}

// Admin is what FrankenPHP adds to Caddy's admin API.
type Admin struct{}

func (Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.frankenphp", New: func() caddy.Module { return new(Admin) }}
}

func (Admin) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{
		Pattern: "/frankenphp/workers/restart",
		Handler: caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if r.Method != http.MethodPost {
				return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed}
			}
			frankenphp.RestartWorkers()
			return nil
		}),
	}}
}
