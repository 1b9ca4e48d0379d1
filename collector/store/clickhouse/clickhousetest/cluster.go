package clickhousetest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// ClusterName is the name of every cluster.
const ClusterName = "audit"

// Cluster is servers that replicate to each other, and the ZooKeeper that they
// agree by.
type Cluster struct {
	Keeper *Server
	Shards [][]*Server // the replicas of each
}

// StartCluster starts a cluster with so many replicas in each shard. The error
// is exec.ErrNotFound where a program is not installed.
func StartCluster(dir string, replicas ...int) (c *Cluster, err error) {
	c = &Cluster{}
	defer func() {
		if err != nil {
			c.Kill()
		}
	}()
	if c.Keeper, err = startKeeper(filepath.Join(dir, "keeper")); err != nil {
		return nil, err
	}
	ports := make([][]int, len(replicas))
	for i, n := range replicas {
		for range n {
			port, err := freePort()
			if err != nil {
				return nil, err
			}
			ports[i] = append(ports[i], port)
		}
	}
	var group errgroup.Group
	for i := range ports {
		c.Shards = append(c.Shards, make([]*Server, len(ports[i])))
		for j, port := range ports[i] {
			group.Go(func() error {
				o := Options{
					Dir: filepath.Join(dir, fmt.Sprintf("%d-%d", i, j)), port: port, keeper: c.Keeper.o.port,
					shard: fmt.Sprint(i), replica: fmt.Sprint(j), shards: ports,
				}
				var err error
				if o.interserver, err = freePort(); err != nil {
					return err
				}
				if err := os.Mkdir(o.Dir, 0o700); err != nil {
					return err
				}
				c.Shards[i][j], err = Start(o)
				return err
			})
		}
	}
	return c, group.Wait()
}

// Kill ends all processes.
func (c *Cluster) Kill() {
	for _, shard := range c.Shards {
		for _, s := range shard {
			if s != nil && s.cmd != nil {
				s.Kill()
			}
		}
	}
	if c.Keeper != nil {
		c.Keeper.Kill()
	}
}

// URL is that of a database of the cluster, asked through these of its servers.
func (c *Cluster) URL(database string, servers ...*Server) string {
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, s.Address())
	}
	return fmt.Sprintf("clickhouse://%s:%s@%s/%s?cluster=%s", User, Password, strings.Join(addresses, ","), database, ClusterName)
}

// startKeeper starts Debian's ZooKeeper.
func startKeeper(dir string) (*Server, error) {
	java, err := find("java", "/usr/bin/java")
	if err != nil {
		return nil, fmt.Errorf("start ZooKeeper: %w", err)
	}
	const library = "/usr/share/java/zookeeper.jar"
	if _, err := os.Stat(library); err != nil {
		return nil, fmt.Errorf("start ZooKeeper: %w", errors.Join(exec.ErrNotFound, err))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "zoo.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, "tickTime=500\ndataDir=%s\nclientPort=%d\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n",
		filepath.Join(dir, "data"), port), 0o600); err != nil {
		return nil, err
	}
	s := &Server{
		o: Options{Dir: dir, port: port}, program: java,
		args: []string{"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", "/etc/zookeeper/conf:" + library, "org.apache.zookeeper.server.ZooKeeperServerMain", config},
		env:  []string{"ZOO_LOG_DIR=" + dir},
	}
	if err := s.run(); err != nil {
		return nil, err
	}
	for began := time.Now(); time.Since(began) < starting; time.Sleep(50 * time.Millisecond) {
		if s.serves() {
			return s, nil
		}
	}
	s.Kill()
	return nil, fmt.Errorf("start ZooKeeper: it does not serve: %s", s.Log())
}

// serves reports whether a ZooKeeper does; it listens before.
func (s *Server) serves() bool {
	conn, err := net.Dial("tcp", s.Address())
	if err != nil {
		return false
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	if _, err := conn.Write([]byte("srvr")); err != nil {
		return false
	}
	answer, err := io.ReadAll(conn)
	return err == nil && strings.Contains(string(answer), "Mode: ")
}
