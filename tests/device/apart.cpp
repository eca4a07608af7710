// A device of its own for PyTorch, on any machine: `apart`.
//
// Its memory is pages of this process that nobody may touch but the copies below, so that code which takes a device's
// pointer for its own crashes, as on a GPU. Operators run as their CPU kernels on copies, and refuse tensors of two
// devices where CUDA refuses them. Streams and events exist; work on them is done at once, which is one of the orders
// that a GPU may choose.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_cpu_dispatch.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/unfold_cpu_dispatch.h>
#include <ATen/ops/view_cpu_dispatch.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <mutex>

namespace {

constexpr auto kApart = c10::DeviceType::PrivateUse1;
constexpr auto kKey = c10::DispatchKey::PrivateUse1;
const c10::Device kDevice(kApart, 0);

// ---- memory: pages without any access, which a copy opens while it runs

std::recursive_mutex mutex;      // held by a copy as long as it has pages open
std::map<void*, size_t> blocks;  // first byte -> length
std::map<void*, size_t> pinned;

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* at = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(at != MAP_FAILED, "apart: out of memory");
    std::lock_guard lock(mutex);
    blocks[at] = std::max<size_t>(bytes, 1);
    return {at, at, &release, kDevice};
  }
  static void release(void* at) {
    std::lock_guard lock(mutex);
    munmap(at, blocks.at(at));
    blocks.erase(at);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void*, const void*, size_t) const override { TORCH_CHECK(false, "apart: copy tensors"); }
};

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* at = malloc(std::max<size_t>(bytes, 1));
    std::lock_guard lock(mutex);
    pinned[at] = std::max<size_t>(bytes, 1);
    return {at, at, &release, c10::Device(c10::DeviceType::CPU)};
  }
  static void release(void* at) {
    std::lock_guard lock(mutex);
    pinned.erase(at);
    free(at);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Memory memory;
PinnedMemory pinned_memory;
REGISTER_ALLOCATOR(kApart, &memory)

/// What a tensor of the device is for CPU kernels, as long as this lives; a tensor of the CPU as it is.
class Opened {
 public:
  explicit Opened(const at::Tensor& tensor) : tensor_(tensor) {
    if (tensor.is_cpu() || tensor.numel() == 0) return;
    block_ = tensor.storage().mutable_data();
    protect(PROT_READ | PROT_WRITE);
    auto options = tensor.options().device(c10::DeviceType::CPU);
    tensor_ = at::from_blob(
        tensor.data_ptr(), tensor.sizes(), tensor.strides(), [](void*) {}, options);
  }
  ~Opened() {
    if (block_) protect(PROT_NONE);
  }
  const at::Tensor& tensor() const { return tensor_; }

 private:
  void protect(int how) { mprotect(block_, blocks.at(block_), how); }
  std::lock_guard<std::recursive_mutex> lock_{mutex};
  at::Tensor tensor_;
  void* block_ = nullptr;
};

// ---- operators

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(kKey), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(kKey),
                                           c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  if (self.numel() == 0) return to;
  auto from = Opened(self.is_same(to) ? at::empty({0}) : self);
  if (self.has_storage() && to.has_storage() && self.storage().is_alias_of(to.storage())) {
    auto whole = copy_from(self, at::empty(self.sizes(), self.options().device(at::kCPU)), false);
    return copy_from(whole, to, false);
  }
  auto into = Opened(to);
  into.tensor().copy_(from.tensor());
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  if (self.sizes() != to.sizes()) to.resize_(self.sizes());
  return copy_from(self, to, false);
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat>) {
  auto needed = at::detail::computeStorageNbytesContiguous(size, self.itemsize(), self.storage_offset());
  if (needed > self.storage().nbytes()) {  // what was there is lost: only outputs are resized
    self.storage().set_data_ptr(memory.allocate(needed));
    self.storage().set_nbytes(needed);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, c10::Storage source, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, c10::Storage source) {
  const auto length = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {length}, {1});
}

at::Tensor as_strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::cpu::as_strided(self, size, stride, offset);
}

at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) { return at::cpu::view(self, size); }

at::Tensor unfold(const at::Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::cpu::unfold(self, dim, size, step);
}

at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::cpu::_reshape_alias(self, size, stride);
}

c10::Scalar item(const at::Tensor& self) {
  auto opened = Opened(self);
  return opened.tensor().item();
}

/// Like CUDA: `tensor.data = ...` and `module.to` leave a parameter the same object.
bool moves_in_place(const at::Tensor&, const at::Tensor&) { return true; }

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                       c10::IntArrayRef out, int64_t groups) {
  auto cpu_bias = bias && bias->defined() ? std::make_optional(bias->cpu()) : std::nullopt;
  auto y = at::convolution(x.cpu(), weight.cpu(), cpu_bias, stride, padding, dilation, transposed, out, groups);
  return y.to(x.device());
}

void record_stream(at::Tensor&, c10::Stream) {}  // nothing runs later, so nothing is held back

/// The CPU's kernel on copies, where CUDA would take these tensors together.
void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  const bool takes_cpu_indices = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index_put", 0) == 0;
  bool ours = false, cpu = false;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    const auto& tensor = value.toTensor();
    (tensor.is_cpu() ? cpu : ours) |= !tensor.is_cpu() || tensor.dim() > 0;
  }
  TORCH_CHECK(!ours || !cpu || takes_cpu_indices, "Expected all tensors to be on the same device: ", name);
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("unfold", unfold);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("_local_scalar_dense", item);
  m.impl("_has_compatible_shallow_copy_type", moves_in_place);
  m.impl("convolution_overrideable", convolution);
  m.impl("native_group_norm", torch::CppFunction::makeFromBoxedFunction<&fall_back>());
  m.impl("record_stream", record_stream);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
}

// ---- streams, events, and what PyTorch asks of a device

thread_local c10::StreamId current = 0;
std::atomic<c10::StreamId> streams{0};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kApart; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  static c10::Stream stream(c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, kDevice, id); }
  c10::Stream getStream(c10::Device) const override { return stream(current); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(++streams); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(++streams); }
  c10::Stream exchangeStream(c10::Stream other) const override { return stream(std::exchange(current, other.id())); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void init() const override {}
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard lock(mutex);
    auto next = pinned.upper_bound(const_cast<void*>(data));
    if (next == pinned.begin()) return false;
    auto [at, bytes] = *std::prev(next);
    return static_cast<const char*>(data) < static_cast<const char*>(at) + bytes;
  }
};

const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

}  // namespace
