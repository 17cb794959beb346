// Runs a program of ExecuTorch in its C++ runtime: MODEL.pte OUTPUTS SHAPE FILE [SHAPE FILE …].
//
// SHAPE is the sizes of an input with commas between, FILE its float32 numbers. The outputs are written to OUTPUTS, one
// after the other; their sizes are printed, one line each. Exit code 1 with a word on stderr where it does not run.
// Compiled and called by run_pte_on_arm.py.
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::EValue;

namespace {

int fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return 1;
}

std::vector<executorch::aten::SizesType> sizes_of(const std::string& text) {
  std::vector<executorch::aten::SizesType> sizes;
  std::stringstream words(text);
  for (std::string word; std::getline(words, word, ',');) sizes.push_back(std::stoi(word));
  return sizes;
}

}  // namespace

int main(int count, char** words) {
  if (count < 5 || count % 2 == 0) return fail("MODEL.pte OUTPUTS SHAPE FILE [SHAPE FILE ...]");
  Module module(words[1], Module::LoadMode::File);
  if (module.load_method("forward") != executorch::runtime::Error::Ok) return fail("the program cannot be loaded");

  std::vector<std::vector<float>> numbers;
  std::vector<executorch::extension::TensorPtr> tensors;
  std::vector<EValue> inputs;
  for (int place = 3; place < count; place += 2) {
    auto sizes = sizes_of(words[place]);
    size_t total = 1;
    for (auto size : sizes) total *= size;
    std::ifstream file(words[place + 1], std::ios::binary);
    numbers.emplace_back(total);
    file.read(reinterpret_cast<char*>(numbers.back().data()), total * sizeof(float));
    if (!file) return fail(std::string(words[place + 1]) + " is too short");
    tensors.push_back(executorch::extension::make_tensor_ptr(sizes, numbers.back().data()));
    inputs.emplace_back(tensors.back());
  }

  auto made = module.forward(inputs);
  if (!made.ok()) return fail("the program does not run, error " + std::to_string(static_cast<int>(made.error())));
  std::ofstream outputs(words[2], std::ios::binary);
  for (const auto& value : made.get()) {
    if (!value.isTensor() || value.toTensor().scalar_type() != ScalarType::Float) return fail("an output is no float32");
    const auto& tensor = value.toTensor();
    for (ssize_t axis = 0; axis < tensor.dim(); ++axis) std::printf(axis ? ",%d" : "%d", int(tensor.size(axis)));
    std::printf("\n");
    outputs.write(reinterpret_cast<const char*>(tensor.const_data_ptr<float>()), tensor.nbytes());
  }
  return outputs ? 0 : fail("the outputs cannot be written");
}
