//! The part of containerd's API that the tests call.
#![allow(
    missing_docs,
    reason = "the messages are documented where they come from"
)]

mod messages;

use std::time::Duration;

use prost::Message;
use tonic::{Status, Streaming};

pub use self::messages::*;
use crate::patience::PATIENCE;
use crate::rpc::Client;

/// containerd's API in one namespace.
#[derive(Clone, Debug)]
pub struct Api {
    rpc: Client,
}

fn process(id: &str) -> ProcessRequest {
    ProcessRequest {
        container_id: id.into(),
        exec_id: String::new(),
    }
}

/// Unary calls, each answering with the server's status as the error.
impl Api {
    pub fn new(rpc: Client) -> Self {
        Self { rpc }
    }

    pub async fn create(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse, Status> {
        self.rpc
            .call("/containerd.services.tasks.v1.Tasks/Create", request)
            .await
    }

    pub async fn start(&self, id: &str) -> Result<u32, Status> {
        let answer: StartResponse = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Start", process(id))
            .await?;
        Ok(answer.pid)
    }

    pub async fn start_exec(&self, id: &str, exec_id: &str) -> Result<u32, Status> {
        let request = ProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
        };
        let answer: StartResponse = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Start", request)
            .await?;
        Ok(answer.pid)
    }

    pub async fn kill_exec(&self, id: &str, exec_id: &str, signal: u32) -> Result<(), Status> {
        let request = KillRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            signal,
            all: false,
        };
        let _: Empty = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Kill", request)
            .await?;
        Ok(())
    }

    pub async fn wait_exec(&self, id: &str, exec_id: &str) -> Result<u32, Status> {
        let request = ProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
        };
        let answer: WaitResponse = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Wait", request)
            .await?;
        Ok(answer.exit_status)
    }

    pub async fn delete_exec(&self, id: &str, exec_id: &str) -> Result<DeleteResponse, Status> {
        let request = ProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
        };
        self.rpc
            .call("/containerd.services.tasks.v1.Tasks/DeleteProcess", request)
            .await
    }

    pub async fn delete(&self, id: &str) -> Result<DeleteResponse, Status> {
        self.rpc
            .call("/containerd.services.tasks.v1.Tasks/Delete", process(id))
            .await
    }

    pub async fn get(&self, id: &str) -> Result<Process, Status> {
        let answer: GetResponse = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Get", process(id))
            .await?;
        answer
            .process
            .ok_or_else(|| Status::internal("Get answered without a process"))
    }

    pub async fn list(&self) -> Result<Vec<Process>, Status> {
        let answer: ListTasksResponse = self
            .rpc
            .call(
                "/containerd.services.tasks.v1.Tasks/List",
                ListTasksRequest::default(),
            )
            .await?;
        Ok(answer.tasks)
    }

    pub async fn state(&self, id: &str) -> Result<State, Status> {
        Ok(self.get(id).await?.status())
    }

    pub async fn kill(&self, id: &str, signal: u32) -> Result<(), Status> {
        let request = KillRequest {
            container_id: id.into(),
            signal,
            ..Default::default()
        };
        let _: Empty = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Kill", request)
            .await?;
        Ok(())
    }

    pub async fn wait(&self, id: &str) -> Result<u32, Status> {
        let answer: WaitResponse = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Wait", process(id))
            .await?;
        Ok(answer.exit_status)
    }

    pub async fn pause(&self, id: &str) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Pause", process(id))
            .await?;
        Ok(())
    }

    pub async fn resume(&self, id: &str) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Resume", process(id))
            .await?;
        Ok(())
    }

    pub async fn pids(&self, id: &str) -> Result<Vec<u32>, Status> {
        let answer: ListPidsResponse = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/ListPids", process(id))
            .await?;
        Ok(answer.processes.iter().map(|p| p.pid).collect())
    }

    pub async fn exec(&self, request: ExecRequest) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Exec", request)
            .await?;
        Ok(())
    }

    pub async fn resize_pty(&self, id: &str) -> Result<(), Status> {
        let request = ResizePtyRequest {
            container_id: id.into(),
            width: 80,
            height: 25,
        };
        let _: Empty = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/ResizePty", request)
            .await?;
        Ok(())
    }

    pub async fn update(&self, id: &str, resources: &str) -> Result<(), Status> {
        let request = UpdateRequest {
            container_id: id.into(),
            resources: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
                value: resources.as_bytes().to_vec(),
            }),
        };
        let _: Empty = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/Update", request)
            .await?;
        Ok(())
    }

    /// Of the container's first process, or of an exec if one is named.
    pub async fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), Status> {
        let request = CloseIoRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            stdin: true,
        };
        let _: Empty = self
            .rpc
            .call("/containerd.services.tasks.v1.Tasks/CloseIO", request)
            .await?;
        Ok(())
    }

    /// Tasks.Checkpoint as a plain API client calls it: the shim sees the container in
    /// the state it is in (only containerd's Go client pauses it first).
    pub async fn checkpoint(
        &self,
        id: &str,
        options: CheckpointOptions,
    ) -> Result<CheckpointTaskResponse, Status> {
        self.checkpoint_within(id, options, PATIENCE).await
    }

    pub async fn checkpoint_within(
        &self,
        id: &str,
        options: CheckpointOptions,
        deadline: Duration,
    ) -> Result<CheckpointTaskResponse, Status> {
        let request = CheckpointTaskRequest {
            container_id: id.into(),
            parent_checkpoint: String::new(),
            options: Some(options.any()),
        };
        self.rpc
            .call_within(
                "/containerd.services.tasks.v1.Tasks/Checkpoint",
                request,
                deadline,
            )
            .await
    }

    pub async fn mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest {
            snapshotter: snapshotter.into(),
            key: key.into(),
        };
        let answer: MountsResponse = self
            .rpc
            .call(
                "/containerd.services.snapshots.v1.Snapshots/Mounts",
                request,
            )
            .await?;
        Ok(answer.mounts)
    }

    pub async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), Status> {
        let request = MountsRequest {
            snapshotter: snapshotter.into(),
            key: key.into(),
        };
        let _: Empty = self
            .rpc
            .call(
                "/containerd.services.snapshots.v1.Snapshots/Remove",
                request,
            )
            .await?;
        Ok(())
    }

    pub async fn container(&self, id: &str) -> Result<Container, Status> {
        let answer: ContainerResponse = self
            .rpc
            .call(
                "/containerd.services.containers.v1.Containers/Get",
                IdRequest { id: id.into() },
            )
            .await?;
        answer
            .container
            .ok_or_else(|| Status::internal("Get answered without a container"))
    }

    /// Gives a container the spec of this record.
    pub async fn set_spec(&self, container: Container) -> Result<(), Status> {
        let _: ContainerResponse = self
            .rpc
            .call(
                "/containerd.services.containers.v1.Containers/Update",
                UpdateContainerRequest {
                    container: Some(container),
                    update_mask: Some(FieldMask {
                        paths: vec!["spec".into()],
                    }),
                },
            )
            .await?;
        Ok(())
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call(
                "/containerd.services.containers.v1.Containers/Delete",
                IdRequest { id: id.into() },
            )
            .await?;
        Ok(())
    }

    pub async fn remove_image(&self, name: &str) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call(
                "/containerd.services.images.v1.Images/Delete",
                IdRequest { id: name.into() },
            )
            .await?;
        Ok(())
    }

    /// Publishes a task event of our own making.
    pub async fn publish(&self, topic: &str, container_id: &str) -> Result<(), Status> {
        let event = TaskEvent {
            container_id: container_id.into(),
        };
        let request = PublishRequest {
            topic: topic.into(),
            event: Some(Any {
                type_url: "containerd.events.TaskPaused".into(),
                value: event.encode_to_vec(),
            }),
        };
        let _: Empty = self
            .rpc
            .call("/containerd.services.events.v1.Events/Publish", request)
            .await?;
        Ok(())
    }

    pub async fn subscribe(&self, filters: Vec<String>) -> Result<Streaming<Envelope>, Status> {
        self.rpc
            .stream(
                "/containerd.services.events.v1.Events/Subscribe",
                SubscribeRequest { filters },
            )
            .await
    }
}
