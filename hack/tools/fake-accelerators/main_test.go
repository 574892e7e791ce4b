package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// simulatedKubelet takes registrations as the kubelet does.
type simulatedKubelet struct {
	api.UnimplementedRegistrationServer
	requests chan *api.RegisterRequest
}

func (k *simulatedKubelet) Register(_ context.Context, r *api.RegisterRequest) (*api.Empty, error) {
	k.requests <- r
	return &api.Empty{}, nil
}

func TestRegistersAllocatesAndComesBack(t *testing.T) {
	folder, err := os.MkdirTemp("", "fake")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	listener, err := net.Listen("unix", filepath.Join(folder, "kubelet.sock"))
	if err != nil {
		t.Fatal(err)
	}
	kubelet := &simulatedKubelet{requests: make(chan *api.RegisterRequest, 2)}
	server := grpc.NewServer()
	api.RegisterRegistrationServer(server, kubelet)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()

	p, err := newPlugin("nvidia.com/mig-1g.10gb=2", "node-a")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- p.serve(folder) }()
	request := <-kubelet.requests
	if request.ResourceName != "nvidia.com/mig-1g.10gb" || request.Version != "v1beta1" {
		t.Fatalf("registered %v", request)
	}
	connection, err := grpc.NewClient("unix://"+filepath.Join(folder, request.Endpoint), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	client := api.NewDevicePluginClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := client.ListAndWatch(ctx, &api.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := stream.Recv()
	if err != nil || len(list.Devices) != 2 || list.Devices[1].ID != "MIG-fake-node-a-mig-1g-10gb-1" || list.Devices[0].Health != api.Healthy {
		t.Fatalf("listed %v, %v", list, err)
	}
	wish := &api.AllocateRequest{ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: []string{"a", "b"}}}}
	answer, err := client.Allocate(ctx, wish)
	if err != nil || answer.ContainerResponses[0].Envs["NVIDIA_VISIBLE_DEVICES"] != "a,b" {
		t.Fatalf("allocated %v, %v", answer, err)
	}
	if err := os.Remove(filepath.Join(folder, request.Endpoint)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Fatal("it did not notice that its socket is gone")
	}
}

func TestRefusesWhatIsNoResource(t *testing.T) {
	for _, wish := range []string{"nvidia.com/gpu", "nvidia.com/gpu=0", "gpu=1", "nvidia.com/gpu=x"} {
		if _, err := newPlugin(wish, "n"); err == nil {
			t.Errorf("%q was taken", wish)
		}
	}
}
