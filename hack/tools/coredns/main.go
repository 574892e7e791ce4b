package main
import "github.com/coredns/coredns/coremain"
import _ "github.com/coredns/coredns/plugin/cache"
import _ "github.com/coredns/coredns/plugin/errors"
import _ "github.com/coredns/coredns/plugin/forward"
import _ "github.com/coredns/coredns/plugin/health"
import _ "github.com/coredns/coredns/plugin/kubernetes"
import _ "github.com/coredns/coredns/plugin/loadbalance"
import _ "github.com/coredns/coredns/plugin/log"
import _ "github.com/coredns/coredns/plugin/loop"
import _ "github.com/coredns/coredns/plugin/metrics"
import _ "github.com/coredns/coredns/plugin/ready"
import _ "github.com/coredns/coredns/plugin/reload"
func main() { coremain.Run() }
