// fake-device-plugin tells the kubelet of a test cluster about accelerators that do not exist.
//
// It speaks the kubelet's real device-plugin API (v1beta1) and sets the variable that NVIDIA's plugin sets, so that everything around the
// devices is real: what the node offers, what the scheduler counts, which pod gets which device. Nothing can be computed on them.
//
//	fake-device-plugin nvidia.com/gpu=2 nvidia.com/mig-1g.10gb=4
//
// NODE_NAME becomes part of every device's name; PLUGIN_DIR is the kubelet's folder, /var/lib/kubelet/device-plugins by default.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// plugin serves one resource.
type plugin struct {
	api.UnimplementedDevicePluginServer
	resource string
	devices  []*api.Device
	done     chan struct{}
}

// newPlugin reads "nvidia.com/gpu=2".
func newPlugin(wish, node string) (*plugin, error) {
	resource, number, found := strings.Cut(wish, "=")
	count, err := strconv.Atoi(number)
	if !found || err != nil || count < 1 || !strings.Contains(resource, "/") {
		return nil, fmt.Errorf("%q is not <domain>/<name>=<count>, for example nvidia.com/gpu=2", wish)
	}
	p := &plugin{resource: resource, done: make(chan struct{})}
	kind := "GPU"
	if strings.Contains(resource, "/mig-") {
		kind = "MIG"
	}
	name := strings.ReplaceAll(strings.SplitN(resource, "/", 2)[1], ".", "-")
	for i := range count {
		id := fmt.Sprintf("%s-fake-%s-%s-%d", kind, node, name, i)
		p.devices = append(p.devices, &api.Device{ID: id, Health: api.Healthy})
	}
	return p, nil
}

func (p *plugin) socket() string {
	return "fake-" + strings.NewReplacer("/", "_", ".", "-").Replace(p.resource) + ".sock"
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch tells all devices once; they never fall ill.
func (p *plugin) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	if err := stream.Send(&api.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	select {
	case <-stream.Context().Done():
	case <-p.done:
	}
	return nil
}

// Allocate sets what NVIDIA's plugin sets with its strategy "envvar": the devices that this container may see.
func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		envs := map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")}
		answer.ContainerResponses = append(answer.ContainerResponses, &api.ContainerAllocateResponse{Envs: envs})
	}
	return answer, nil
}

// serve registers with the kubelet and returns when its own socket is gone: a kubelet that starts empties the folder.
func (p *plugin) serve(folder string) error {
	path := filepath.Join(folder, p.socket())
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go func() { _ = server.Serve(listener) }()
	defer func() {
		close(p.done)
		server.Stop()
		p.done = make(chan struct{})
	}()
	if err := p.register(folder); err != nil {
		return err
	}
	log.Printf("registered %d fake devices as %s", len(p.devices), p.resource)
	for {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("the kubelet started again: %w", err)
		}
		time.Sleep(time.Second)
	}
}

func (p *plugin) register(folder string) error {
	target := "unix://" + filepath.Join(folder, filepath.Base(api.KubeletSocket))
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request := &api.RegisterRequest{Version: api.Version, Endpoint: p.socket(), ResourceName: p.resource}
	_, err = api.NewRegistrationClient(connection).Register(ctx, request)
	return err
}

func main() {
	folder := os.Getenv("PLUGIN_DIR")
	if folder == "" {
		folder = strings.TrimSuffix(api.DevicePluginPath, "/")
	}
	if len(os.Args) < 2 {
		log.Fatal("usage: fake-device-plugin <domain>/<name>=<count>...")
	}
	for _, wish := range os.Args[1:] {
		p, err := newPlugin(wish, os.Getenv("NODE_NAME"))
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			for {
				log.Printf("%s: %v", p.resource, p.serve(folder))
				time.Sleep(time.Second)
			}
		}()
	}
	select {}
}
