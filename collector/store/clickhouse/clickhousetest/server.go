// Package clickhousetest starts ClickHouse servers of a test's own, and kills them.
package clickhousetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// User and Password are those of every server. Reader has the same password,
// and may change nothing.
const (
	User     = "flowaudit"
	Reader   = "reader"
	Password = "secret"
)

// Options configure a server. Its directory exists, and is its own.
type Options struct {
	Dir  string
	Data string // where tables are kept; empty takes a place in Dir
	// Cert and Key are PEM files: with them it listens with TLS, and not without.
	Cert, Key string

	port, interserver int
	keeper            int // port of ZooKeeper; 0 for none
	shard, replica    string
	shards            [][]int // ports of all servers
}

// Server is a process of ours.
type Server struct {
	o       Options
	program string
	args    []string
	env     []string
	base    string // of the URLs of its databases
	cmd     *exec.Cmd
}

// text is the server's configuration.
const text = `<yandex>
<logger><level>{{if .Keeper}}debug{{else}}warning{{end}}</level><console>1</console></logger>
<listen_host>127.0.0.1</listen_host>
{{if .Cert}}<tcp_port_secure>{{.Port}}</tcp_port_secure>
<openSSL><server><certificateFile>{{.Cert}}</certificateFile><privateKeyFile>{{.Key}}</privateKeyFile><verificationMode>none</verificationMode></server></openSSL>
{{else}}<tcp_port>{{.Port}}</tcp_port>{{end}}
<path>{{.Data}}/</path><tmp_path>{{.Data}}/tmp/</tmp_path><user_files_path>{{.Dir}}/files/</user_files_path><users_config>{{.Dir}}/users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database><mark_cache_size>67108864</mark_cache_size><timezone>UTC</timezone>
{{if .Keeper}}<zookeeper><node><host>127.0.0.1</host><port>{{.Keeper}}</port></node></zookeeper>
<interserver_http_host>127.0.0.1</interserver_http_host><interserver_http_port>{{.Interserver}}</interserver_http_port>
<macros><shard>{{.Shard}}</shard><replica>{{.Replica}}</replica></macros>
<distributed_ddl><path>/clickhouse/ddl</path></distributed_ddl>
<remote_servers><` + ClusterName + `>{{range .Shards}}<shard><internal_replication>true</internal_replication>
{{range .}}<replica><host>127.0.0.1</host><port>{{.}}</port><user>` + User + `</user><password>` + Password + `</password></replica>{{end}}
</shard>{{end}}</` + ClusterName + `></remote_servers>{{end}}
</yandex>
`

// users has a user default beside ours: as that, without a password, servers of
// 18.16 ask the leader of a shard to drop a partition.
const users = `<yandex>
<profiles><default/><readonly><readonly>2</readonly></readonly></profiles><quotas><default/></quotas>
<users>
<` + User + `><password>` + Password + `</password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></` + User + `>
<` + Reader + `><password>` + Password + `</password><networks><ip>127.0.0.1</ip></networks><profile>readonly</profile><quota>default</quota></` + Reader + `>
<default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default>
</users>
</yandex>
`

// Start starts Debian's clickhouse-server. The error is exec.ErrNotFound where
// it is not installed.
func Start(o Options) (*Server, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, fmt.Errorf("start clickhouse-server: %w", err)
	}
	return s, s.Start()
}

func prepare(o Options) (*Server, error) {
	program, err := find("clickhouse-server", "/usr/sbin/clickhouse-server")
	if err != nil {
		return nil, err
	}
	if o.port == 0 {
		if o.port, err = freePort(); err != nil {
			return nil, err
		}
	}
	if o.Data == "" {
		o.Data = filepath.Join(o.Dir, "data")
	}
	t, err := template.New("").Parse(text)
	if err != nil {
		return nil, err
	}
	var config strings.Builder
	if err := t.Execute(&config, map[string]any{
		"Dir": o.Dir, "Data": o.Data, "Cert": o.Cert, "Key": o.Key, "Port": o.port, "Interserver": o.interserver, "Keeper": o.keeper,
		"Shard": o.shard, "Replica": o.replica, "Shards": o.shards,
	}); err != nil {
		return nil, err
	}
	for name, content := range map[string]string{"config.xml": config.String(), "users.xml": users} {
		if err := os.WriteFile(filepath.Join(o.Dir, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	return &Server{
		o: o, program: program, args: []string{"--config-file=" + filepath.Join(o.Dir, "config.xml")},
		base: fmt.Sprintf("clickhouse://%s:%s@127.0.0.1:%d/", User, Password, o.port),
	}, nil
}

// find looks for a program by its name, and then where Debian has it.
func find(name, path string) (string, error) {
	program, err := exec.LookPath(name)
	if err != nil {
		program, err = exec.LookPath(path)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
	}
	return program, nil
}

// freePort is one that nobody has now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// Start starts the server, also once more after Kill, and waits until it answers.
func (s *Server) Start() error {
	if err := s.run(); err != nil {
		return err
	}
	err := s.wait()
	if err == nil && s.o.keeper != 0 {
		err = s.waitCluster()
	}
	if err != nil {
		s.Kill()
		return fmt.Errorf("start %s: %w: %s", s.program, err, s.Log())
	}
	return nil
}

// run starts the process.
func (s *Server) run() error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.program, s.args...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.o.Dir, log, log
	if s.env != nil {
		s.cmd.Env = append(os.Environ(), s.env...)
	}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that dies leaves nothing behind
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.program, err)
	}
	return nil
}

func (s *Server) logFile() string { return filepath.Join(s.o.Dir, "log") }

// Log is what the server said.
func (s *Server) Log() string {
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// starting bounds how long a server may take until it answers.
const starting = 60 * time.Second

// wait waits until the server answers. What cannot be verified answers too.
func (s *Server) wait() error {
	options, err := clickhouse.ParseDSN(s.URL("default"))
	if err != nil {
		return err
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), starting)
	defer cancel()
	for {
		if err = conn.Ping(ctx); err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// waitCluster waits until the server takes statements for the whole cluster: one
// that comes before makes 18.16 crash.
func (s *Server) waitCluster() error {
	for began := time.Now(); time.Since(began) < starting; time.Sleep(50 * time.Millisecond) {
		log := s.Log()
		if n := strings.LastIndex(log, "Started DDLWorker thread"); n >= 0 && strings.Contains(log[n:], "DDLWorker: Processing tasks") {
			return nil
		}
	}
	return errors.New("it does not reach ZooKeeper")
}

// URL is that of one of the server's databases.
func (s *Server) URL(database string) string {
	if s.o.Cert != "" {
		return s.base + database + "?secure=true&skip_verify=true"
	}
	return s.base + database
}

// Address is where the server listens.
func (s *Server) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.o.port) }

// PID is the number of its process.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Kill ends the process at once, as a crash does.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	_ = s.cmd.Wait()
}
